"""COCO's figures by name and per class, against what pycocotools prints."""

import re

import numpy as np
import pytest

from evit_mm.evaluation import boxes, coco_eval
from evit_mm.evaluation.synthetic_detections import synthetic_detections
from tests.evaluation.test_tide import A, B, a_case, read


def test_each_figure_has_the_name_of_its_line_in_pycocotools_table(capsys):
    evaluator = boxes.coco_evaluator(*read(*synthetic_detections(30, num_classes=3)))
    with pytest.raises(ValueError, match=r'call accumulate\(\) first'):
        coco_eval.precision(evaluator)
    evaluator.accumulate()
    stats = coco_eval.summarize(evaluator)
    lines = [line for line in capsys.readouterr().out.splitlines() if '@[' in line]
    assert len(lines) == len(coco_eval.FIGURES) == len(set(stats)) == 12
    areas = {'small': 'below 32²', 'medium': '32² to 96²', 'large': 'above 96²'}
    for (name, meaning), line, value in zip(coco_eval.FIGURES, lines, stats, strict=True):
        kind, iou, area, most, printed = re.search(
            r'\((AP|AR)\) @\[ IoU=(\S+) +\| area= *(\w+) \| maxDets= *(\d+) \] = (\S+)', line
        ).groups()
        assert name.startswith(kind) and float(printed) == pytest.approx(value, abs=5.1e-4)
        if area != 'all':
            assert name == f'{kind} {area}' and areas[area] in meaning
        elif kind == 'AR':
            assert name == f'AR {most}' and meaning.startswith(f'{most} detection')
        else:
            assert name == {'0.50:0.95': 'AP', '0.50': 'AP50', '0.75': 'AP75'}[iou]
            assert meaning == f'IoU {iou.replace(":", " to ")}'
    figures = coco_eval.coco_figures(evaluator)
    assert figures.twelve == tuple(stats) and not capsys.readouterr().out


def test_curves_are_means_over_the_classes_with_objects():
    # the IoU of 0.74 counts at 0.50 to 0.70 (five of ten), and nothing is found of class 2
    objects, found = [(0, A), (2, B)], [(0, [0, 0, 10, 7.4], 0.9)]
    evaluator = boxes.coco_evaluator(*read(*a_case(objects, found, classes=3)))
    evaluator.accumulate()
    figures = coco_eval.coco_figures(evaluator)
    np.testing.assert_allclose(figures.ap50, [1, np.nan, 0])
    np.testing.assert_allclose(figures.ap, [0.5, np.nan, 0])
    for name, value in {'0.50': 0.5, '0.75': 0, '0.50 to 0.95': 0.25}.items():
        assert figures.curves[name] == pytest.approx(np.full(101, value))
    assert figures.twelve[:3] == pytest.approx((0.25, 0.5, 0)) and np.isnan(figures.twelve[4])

    evaluator = boxes.coco_evaluator(*read(*a_case([], found)))
    evaluator.accumulate()
    nothing = coco_eval.coco_figures(evaluator)
    assert nothing.curves == {} and np.isnan(nothing.twelve).all() and np.isnan(nothing.ap).all()
