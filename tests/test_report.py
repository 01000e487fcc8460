"""The report: its figures against COCO's and naive loops, and the page in a real browser."""

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import evit_mm.report
from evit_mm.data import make_shapes
from evit_mm.errors import CheckpointError, ConfigError, DataError
from evit_mm.evaluation import boxes, tide
from evit_mm.evaluation import statistics as figures_of
from evit_mm.evaluation.statistics import RATIOS, SIDES
from evit_mm.evaluation.synthetic_detections import synthetic_detections
from evit_mm.report import analysis, charts, detections, pictures, runs, write_report
from evit_mm.report import page as page_module
from evit_mm.runner.work_dir import find_checkpoint

from .conftest import ROOT
from .test_docs import blocks
from .test_engine import write_config

HOSTILE = [
    '</script><script>window.hacked = 1</script>',
    '<img src=x onerror="window.hacked = 2">',
    '{{ 7 * 7 }} & "quotes\' -->',
]


def read(truth, found, name='made'):
    classes = [category['name'] for category in truth['categories']]
    things = boxes.read_truth(truth, name, '.', classes)
    return things, boxes.read_found(found, things, name)


def analysed(truth, found):
    things, seen = read(truth, found)
    matches = boxes.find_matches(figures_of.evaluate(things, seen), things, seen)
    return things, seen, matches, tide.analyse(things, seen, matches)


def a_case(objects, found, classes=2):
    """One image; objects ``(class, box[, crowd])``, detections ``(class, box, score)``."""
    truth = {
        'images': [{'id': 7, 'file_name': 'a.jpg', 'width': 100, 'height': 100}],
        'categories': [{'id': 10 + i, 'name': f'class {i}'} for i in range(classes)],
        'annotations': [
            {
                'id': i,
                'image_id': 7,
                'category_id': 10 + k,
                'bbox': box,
                'iscrowd': int(bool(crowd)),
            }
            for i, (k, box, *crowd) in enumerate(objects)
        ],
    }
    results = [
        {'image_id': 7, 'category_id': 10 + k, 'bbox': box, 'score': score}
        for k, box, score in found
    ]
    return truth, results


# ---- errors after TIDE

A, B, FAR = [0, 0, 10, 10], [40, 40, 10, 10], [80, 80, 10, 10]
SHIFTED = [0, 5, 10, 10]  # IoU 1/3 with A
HALF = 51 / 101  # of two objects one found: COCO's 101 points up to recall 0.5


@pytest.mark.parametrize(
    ('objects', 'found', 'kinds', 'missed', 'ap', 'cost'),
    [
        ([(0, A)], [(0, A, 0.9)], [tide.RIGHT], 0, 1, {}),
        ([(0, A)], [(1, A, 0.9)], [tide.CLASSIFICATION], 0, 0, {'classification': 1}),
        ([(0, A)], [(0, SHIFTED, 0.9)], [tide.LOCALISATION], 0, 0, {'localisation': 1}),
        # to suppress it gains nothing, and the object is missed all the same
        ([(0, A)], [(1, SHIFTED, 0.9)], [tide.BOTH], 1, 0, {'missed': 1}),
        # a missed object that is not counted leaves a false detection where it is
        ([(0, A)], [(0, FAR, 0.9)], [tide.FALSE_ALARM], 1, 0, {}),
        ([(0, A)], [(0, FAR, 0.9), (0, A, 0.8)], [tide.FALSE_ALARM, -1], 0, 0.5,
         {'background': 0.5}),
        ([(0, A), (0, B)], [(0, A, 0.9), (0, A, 0.8), (0, B, 0.7)],
         [-1, tide.DUPLICATE, -1], 0, (51 + 50 * 2 / 3) / 101,
         {'duplicate': 1 - (51 + 50 * 2 / 3) / 101}),
        ([(0, A), (0, B)], [(0, A, 0.9)], [-1], 1, HALF, {'missed': 1 - HALF}),
        ([(0, A)], [], [], 1, 0, {'missed': 1}),
        # the surer of two that are about one object is mended, the other goes
        ([(0, A)], [(0, SHIFTED, 0.9), (0, [5, 0, 10, 10], 0.8)], [tide.LOCALISATION] * 2, 0, 0,
         {'localisation': 1}),
        # an object that is found needs no mending: the false one just goes
        ([(0, A)], [(0, SHIFTED, 0.9), (0, A, 0.8)], [tide.LOCALISATION, -1], 0, 0.5,
         {'localisation': 0.5}),
        # in a crowd nothing is counted, unless it is of another class
        ([(0, A), (0, B, True)], [(0, [42, 42, 4, 4], 0.95), (0, A, 0.9)], [tide.IGNORED, -1], 0,
         1, {}),
        ([(0, A), (1, B, True)], [(0, [42, 42, 4, 4], 0.95), (0, A, 0.9)],
         [tide.FALSE_ALARM, -1], 0, 0.5, {'background': 0.5}),
        # nor is an object that overlaps a crowd badly placed
        ([(0, A), (0, B, True)], [(0, [40, 47, 10, 10], 0.95), (0, A, 0.9)],
         [tide.FALSE_ALARM, -1], 0, 0.5, {'background': 0.5}),
        # a class without objects is not in the mean, one without detections is
        ([(0, A)], [(0, A, 0.9), (1, FAR, 0.8)], [-1, tide.FALSE_ALARM], 0, 1, {}),
        ([(0, A), (1, B)], [(0, A, 0.9)], [-1], 1, 0.5, {'missed': 0.5}),
    ],
)  # fmt: skip
def test_each_kind_of_error_and_its_cost_by_hand(objects, found, kinds, missed, ap, cost):
    *_, found_errors = analysed(*a_case(objects, found))
    assert found_errors.kind.tolist() == kinds
    assert found_errors.missed.sum() == missed
    assert found_errors.ap == pytest.approx(ap)
    expected = [cost.get(kind, 0) for kind in tide.KINDS]
    assert found_errors.cost == pytest.approx(expected)


def counted(errors):
    kinds = np.bincount(errors.kind[errors.kind >= 0], minlength=len(tide.KINDS) - 1)
    return (*kinds.tolist(), int(errors.missed.sum()))


@pytest.mark.parametrize('seed', range(7))
def test_each_detection_is_of_the_kind_that_is_counted(seed):
    """With crowds, equal scores and equal boxes."""
    truth, found = synthetic_detections(40, num_classes=6, seed=seed)
    found += [{**detection, 'category_id': 1} for detection in found[::7]]
    *_, mine = analysed(truth, found)
    assert counted(mine) == mine.counts and (mine.kind == tide.IGNORED).any()


@pytest.mark.parametrize('case', [0, 1])
def test_errors_and_costs_are_those_of_the_authors_tool(case):
    golden = json.loads((ROOT / 'tests' / 'data' / 'tide_golden.json').read_text())['cases'][case]
    truth, found = synthetic_detections(*golden['made_detections'])
    truth['annotations'] = [a for a in truth['annotations'] if not a['iscrowd']]
    for place, detection in enumerate(found):
        detection['score'] += place * 1e-8
    *_, mine = analysed(truth, found)
    assert 100 * mine.ap == pytest.approx(golden['AP50'], abs=1e-9)
    names = ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss')
    assert mine.counts == tuple(golden['counts'][name] for name in names)
    assert counted(mine) == mine.counts  # of each detection, and of all
    lost = [golden['lost'][name] for name in names]
    assert [100 * x for x in mine.cost] == pytest.approx(lost, abs=1e-9)
    special = golden['special']
    assert 100 * mine.false_positives == pytest.approx(special['FalsePos'], abs=1e-9)
    assert 100 * mine.false_negatives == pytest.approx(special['FalseNeg'], abs=1e-9)


def test_cost_of_an_image_is_what_taking_its_mistakes_away_gains():
    truth, found = synthetic_detections(12, num_classes=4, seed=3)
    things, seen, matches, kinds = analysed(truth, found)
    cost = tide.cost_of_images(things, seen, kinds, matches)
    assert len(cost) == 12 and (cost > 0).sum() > 6

    def mean_ap(without):
        values = []
        for label in range(4):
            objects = [
                g for g in range(len(things.image))
                if things.label[g] == label and not things.crowd[g]
                and not (things.image[g] == without and matches.found_of[g] < 0)
            ]  # fmt: skip
            hits = [
                bool(matches.hit[d]) for d in range(len(seen.image))
                if seen.label[d] == label and not matches.ignored[d]
                and not (seen.image[d] == without and not matches.hit[d])
            ]  # fmt: skip
            values.append(naive_average(hits, len(objects)))
        return np.mean(values)

    expected = [max(mean_ap(image) - mean_ap(None), 0) for image in range(12)]
    assert cost == pytest.approx(expected, abs=1e-12)


# ---- COCO's figures, cut in several ways


def naive_average(hits, objects):
    """COCO's average precision from right and wrong, surest first."""
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    recall = [sum(hits[: i + 1]) / objects for i in range(len(hits))]
    points = []
    for wanted in np.linspace(0, 1, 101):
        reached = [i for i in range(len(hits)) if recall[i] >= wanted]
        points.append(max(precision[reached[0] :]) if reached else 0)
    return np.mean(points)


def naive_ap(truth, found, label, iou_threshold, quantity, low, high):
    """COCO's rules, one detection at a time, for objects and detections of a range."""
    marked, total = [], 0
    for image in truth['images']:
        objects = [
            a for a in truth['annotations']
            if a['image_id'] == image['id'] and a['category_id'] == label
        ]  # fmt: skip
        outside = [a['iscrowd'] or not low <= quantity(a, True) <= high for a in objects]
        total += outside.count(False)
        seen = [d for d in found if d['image_id'] == image['id'] and d['category_id'] == label]
        taken = set()
        for detection in sorted(seen, key=lambda d: -d['score'])[:100]:
            best = {}
            for place, thing in enumerate(objects):
                if place in taken and not thing['iscrowd']:
                    continue
                iou = naive_iou(detection['bbox'], thing['bbox'], thing['iscrowd'])
                if iou >= iou_threshold:
                    best.setdefault(bool(outside[place]), []).append((iou, place))
            if False in best or True in best:
                ignored = False not in best
                place = max(best[ignored])[1]
                taken.add(place)
                if not ignored:
                    marked.append((detection['score'], True))
            elif low <= quantity(detection, False) <= high:
                marked.append((detection['score'], False))
    if total == 0:
        return None
    marked.sort(key=lambda entry: -entry[0])
    return naive_average([hit for _, hit in marked], total)


def naive_iou(a, b, crowd):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - shared)


@pytest.fixture(scope='module')
def small():
    """Twenty made images with distinct scores, and the figures on them."""
    truth, found = synthetic_detections(20, num_classes=4, seed=5)
    for place, detection in enumerate(found):
        detection['score'] += place * 1e-7
    pair = read(truth, found)
    return truth, found, figures_of.coco_figures(figures_of.evaluate(*pair), *pair)


def test_twelve_figures_classes_and_curves_are_pycocotools(small):
    truth, found, mine = small
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = json.loads(json.dumps(truth))
        api.createIndex()
        theirs = COCOeval(api, api.loadRes(json.loads(json.dumps(found))), 'bbox')
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    precision = theirs.eval['precision'][..., 0, -1]
    assert list(mine.twelve) == theirs.stats.tolist()
    assert mine.ap == pytest.approx(precision.mean((0, 1)), abs=1e-12)
    assert mine.ap50 == pytest.approx(precision[0].mean(0), abs=1e-12)
    assert mine.curves == pytest.approx(precision[0].T, abs=1e-12)
    assert mine.mean_curves['0.75'] == pytest.approx(precision[5].mean(1), abs=1e-12)
    assert mine.mean_curves['0.50 to 0.95'] == pytest.approx(precision.mean((0, 2)), abs=1e-12)


@pytest.mark.parametrize('cut', ['size', 'ratio', 'class'])
def test_ap_by_size_shape_and_class_against_naive_loops(small, cut):
    truth, found, mine = small

    def area(entry, is_truth):
        return entry['area'] if is_truth else entry['bbox'][2] * entry['bbox'][3]

    def ratio(entry, _):
        return entry['bbox'][2] / entry['bbox'][3]

    def mean(label, quantity, low, high):
        thresholds = np.linspace(0.5, 0.95, 10)
        values = [naive_ap(truth, found, label, t, quantity, low, high) for t in thresholds]
        return None if None in values else np.mean(values)

    if cut == 'class':
        expected = [mean(label, area, 0, 1e10) for label in range(1, 5)]
        assert mine.ap == pytest.approx(expected, abs=1e-12)
        return
    limits, quantity = ([s**2 for s in SIDES], area) if cut == 'size' else (RATIOS, ratio)
    rows = mine.by_size if cut == 'size' else mine.by_ratio
    for (name, value, number), low, high in zip(rows, limits, limits[1:], strict=False):
        values = [mean(label, quantity, low, high) for label in range(1, 5)]
        values = [v for v in values if v is not None]
        assert value == pytest.approx(np.mean(values), abs=1e-12), name
        objects = [a for a in truth['annotations'] if not a['iscrowd']]
        assert number == sum(low <= quantity(a, True) < high for a in objects)


def test_confusion_against_naive_loops(small):
    truth, found, _ = small
    things, seen, matches, _ = analysed(truth, found)
    mine = figures_of.confusion(things, seen, matches, 0.3)
    expected = np.zeros((5, 5), int)
    for image in truth['images']:
        objects = [a for a in truth['annotations'] if a['image_id'] == image['id']]
        crowds = [a for a in objects if a['iscrowd']]
        free = [a for a in objects if not a['iscrowd']]
        left = []
        own = sorted((d for d in found if d['image_id'] == image['id']), key=lambda d: -d['score'])
        for same in (True, False):
            for d in own if same else left[:]:
                if same and d['score'] < 0.3:
                    continue
                fits = [
                    (naive_iou(d['bbox'], a['bbox'], False), -a['id'], a) for a in free
                    if not same or a['category_id'] == d['category_id']
                ]  # fmt: skip
                iou, _, thing = max(fits, default=(0, 0, None), key=lambda fit: fit[:2])
                if iou >= 0.5:
                    expected[thing['category_id'] - 1, d['category_id'] - 1] += 1
                    free.remove(thing)
                elif same:
                    if not any(
                        c['category_id'] == d['category_id']
                        and naive_iou(d['bbox'], c['bbox'], True) >= 0.5
                        for c in crowds
                    ):
                        left.append(d)
                else:
                    expected[4, d['category_id'] - 1] += 1
        for thing in free:
            expected[thing['category_id'] - 1, 4] += 1
    assert mine.tolist() == expected.tolist()
    assert mine[:4, :4].trace() > 20 and mine.sum() - mine[:4, :4].trace() > 20


def test_calibration_and_the_best_score_against_naive_loops(small):
    things, seen, matches, _ = analysed(*small[:2])
    mine = analysis.analyse_detections(things, seen).calibration
    counted = [d for d in range(len(seen.score)) if not matches.ignored[d]]
    gaps = 0
    for place in range(10):
        own = [d for d in counted if place / 10 <= seen.score[d] < (place + 1) / 10]
        score, right = np.mean(seen.score[own]), np.mean(matches.hit[own])
        part = mine['bins'][place]
        assert part['count'] == len(own)
        assert part['avg_confidence'] == pytest.approx(score)
        assert part['avg_accuracy'] == pytest.approx(right)
        gaps += len(own) / len(counted) * abs(score - right)
    assert mine['ece'] == pytest.approx(gaps)

    best = figures_of.working_score(seen, matches, things)

    def f1(threshold):
        sure = [d for d in counted if seen.score[d] >= threshold]
        return 2 * matches.hit[sure].sum() / (len(sure) + things.objects.sum())

    assert f1(best) == pytest.approx(max(f1(score) for score in seen.score))


def test_nothing_found_and_no_object_are_no_number_and_no_crash():
    truth, _ = a_case([(0, A)], [])
    nothing = analysis.analyse_detections(*read(truth, []))
    assert nothing.figures.twelve[0] == 0 and np.isnan(nothing.figures.ap[1])
    assert nothing.calibration['num_detections'] == nothing.working_score == 0
    assert nothing.confusion[0].tolist() == [0, 0, 1]
    assert nothing.image_cost.tolist() == [1]
    truth['annotations'] = []
    empty = analysis.analyse_detections(*read(truth, []))
    assert np.isnan(empty.errors.ap) and np.isnan(empty.figures.twelve[0])


# ---- reading


def test_detections_that_cannot_count_are_left_out_and_named():
    truth, found = a_case([(0, A)], [(0, A, 0.9), (0, A, float('nan')), (0, [0, 0, 0, 5], 0.8)])
    found.append({**found[0], 'image_id': 8})
    found.append({**found[0], 'bbox': [0, 0, float('inf'), 1]})
    found += [{**found[0], 'score': 0.1}] * 120
    _, seen = read(truth, found)
    assert len(seen.score) == 100 and seen.score[0] == 0.9
    assert seen.left_out == {
        'with a figure that is not finite': 2,
        'of an image or class that is not evaluated': 1,
        'without area': 1,
        'beyond the best 100 of an image': 21,
    }


def test_broken_files_are_named():
    truth, _ = a_case([(0, A)], [])
    things = boxes.read_truth(truth, 'a.json', '.', ['class 0'])
    with pytest.raises(DataError, match='b.json.*KeyError'):
        boxes.read_found([{'image_id': 7}], things, 'b.json')
    with pytest.raises(DataError, match='b.json.*four numbers'):
        boxes.read_found([{'image_id': 7, 'category_id': 10, 'bbox': [1], 'score': 1}], things,
                         'b.json')  # fmt: skip
    del truth['annotations'][0]['bbox']
    with pytest.raises(DataError, match="a.json' is not in COCO's format"):
        boxes.read_truth(truth, 'a.json', '.', ['class 0'])


def test_truth_without_areas_with_absent_classes_and_of_some_images():
    truth, _ = synthetic_detections(5, num_classes=3)
    for annotation in truth['annotations']:
        del annotation['area']
    names = ['class 2', 'nowhere', 'class 1']
    things = boxes.read_truth(truth, 'a', '.', names)
    assert things.area == pytest.approx(things.box[:, 2] * things.box[:, 3])
    assert things.objects[1] == 0 and things.objects[[0, 2]].sum() > 0
    for indices, expected in ((2, [1, 2]), (-2, [4, 5]), ([0, 3], [1, 4])):
        some = boxes.read_truth(truth, 'a', '.', names, indices)
        assert list(some.image_ids) == expected
        assert set(some.image.tolist()) <= {0, 1}


def write_run(folder, config='model = dict()\n', lines=(), summary=None):
    logs = folder / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    (folder / 'tiny.py').write_text(config)
    (logs / 'scalars.json').write_text('\n'.join(lines))
    if summary is not None:
        (folder / 'summary.json').write_text(json.dumps(summary))
    return folder


def train_line(step, loss, **more):
    return json.dumps({'loss': loss, 'lr': 0.1, 'iter': step, 'epoch': 1, 'step': step, **more})


def test_curves_of_a_run_that_was_resumed_and_one_that_is_writing(tmp_path):
    lines = [train_line(step, float(step)) for step in (10, 20, 30)]
    lines += ['{"coco/bbox_mAP": 0.25, "step": 1}', '', train_line(40, float('nan'))]
    folder = write_run(tmp_path / 'run', lines=lines)
    second = folder / '20260102_000000' / 'vis_data'
    second.mkdir(parents=True)
    later = [train_line(20, 7.0), '{"coco/bbox_mAP": -1, "step": 2}', '{"loss": 1.0, "ste']
    (second / 'scalars.json').write_text('\n'.join(later))
    run = runs.read_runs([folder])[0]
    assert run.steps['loss'] == [(10, 10.0), (20, 7.0)]  # 30 and 40 were before the resumption
    assert run.ap == [(1, 0.25)] and run.best == (1, 0.25)
    assert run.notes == ['Lines of its scalars.json that are not whole are left out: 1.']


def test_what_a_run_says_of_how_it_was_made(tmp_path):
    summary = {
        'finished': True, 'seconds': 432.0, 'peak_memory_mib': {'ram': 2048.0, 'gpu': None},
        'command': ['tools/train.py', 'a.py'], 'seed': 3, 'commit': 'abc',
        'versions': {'torch': '2'}, 'host': {'cores': 2, 'cpu': 'X', 'gpu': None},
    }  # fmt: skip
    folders = [
        write_run(tmp_path / 'a', summary=summary),
        write_run(tmp_path / 'b', 'randomness = dict(seed=9)\n', summary=['?']),
    ]
    told, bare = (run.facts() for run in runs.read_runs(folders))
    assert told == {
        'config': 'tiny.py', 'state': 'finished', 'command': 'tools/train.py a.py', 'seed': '3',
        'training time': '7.2 min', 'peak memory': 'RAM 2.00 GiB', 'commit': 'abc',
        'versions': 'torch 2', 'machine': 'cores: 2, cpu: X',
    }  # fmt: skip
    assert bare['seed'] == '9' and bare['peak memory'] == 'not recorded'
    assert bare['training time'] == bare['commit'] == bare['versions'] == 'not recorded'
    assert 'summary.json cannot be read' in runs.read_runs(folders)[1].notes[-1]


def test_runs_of_one_name_are_told_apart_and_a_broken_summary_is_named(tmp_path):
    folders = [write_run(tmp_path / parent / 'run') for parent in ('a', 'b')]
    (folders[1] / 'summary.json').write_text('{')
    first, second = runs.read_runs(folders)
    assert (first.name, second.name) == ('a/run', 'b/run')
    assert any('summary.json cannot be read' in note for note in second.notes)


def test_long_curves_are_thinned_and_long_names_stay_apart():
    spec = charts.curve({'run': [(i, 1 / i) for i in range(1, 5001)]}, 'iteration', 'loss', False)
    values = spec['data']['values']
    assert len(values) == charts.MAX_POINTS
    assert (values[0]['x'], values[-1]['x']) == (1, 5000)
    names = charts.unique_names(['a' * 60, 'a' * 61, 'b'])
    assert len(set(names)) == 3 and max(map(len, names)) < 50


def test_best_checkpoint_then_the_one_pointed_at_then_the_newest(tmp_path):
    assert find_checkpoint(tmp_path) is None
    (tmp_path / 'weights.pth').touch()  # of tools/compare.py
    assert find_checkpoint(tmp_path).name == 'weights.pth'
    (tmp_path / 'epoch_1.pth').touch()
    (tmp_path / 'epoch_2.pth').touch()
    (tmp_path / 'last_checkpoint').write_text('/gone/epoch_1.pth')
    assert find_checkpoint(tmp_path).name == 'epoch_1.pth'
    (tmp_path / 'last_checkpoint').write_text('/gone/epoch_9.pth')
    assert find_checkpoint(tmp_path).name == 'epoch_2.pth'
    (tmp_path / 'best_coco_bbox_mAP_epoch_1.pth').touch()
    assert find_checkpoint(tmp_path).name == 'best_coco_bbox_mAP_epoch_1.pth'


def test_what_is_no_training_is_named(tmp_path):
    with pytest.raises(DataError, match='does not exist'):
        write_report([tmp_path / 'nowhere'], tmp_path / 'out')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='no config'):
        write_report([tmp_path / 'empty'], tmp_path / 'out')
    (tmp_path / 'no_folder').touch()
    with pytest.raises(DataError, match='is no folder'):
        write_report([tmp_path / 'no_folder'], tmp_path / 'out')
    broken = write_run(tmp_path / 'broken', 'model = dict(\n')
    with pytest.raises(ConfigError, match=r'tiny\.py.*cannot be read'):
        write_report([broken], tmp_path / 'out')
    run = write_run(tmp_path / 'run')
    with pytest.raises(DataError, match='given twice'):
        write_report([run, run], tmp_path / 'out')
    with pytest.raises(ConfigError, match='--compare takes two'):
        write_report([run], tmp_path / 'out', compare=True)
    with pytest.raises(ConfigError, match='1 to 8'):
        write_report([run] * 9, tmp_path / 'out')
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='cannot be written'):
        write_report([run], tmp_path / 'file')
    with pytest.raises(DataError, match='is not a table'):
        write_report([run], tmp_path / 'out', table=tmp_path / 'file')
    assert not (tmp_path / 'out').exists()


def test_the_tool_says_an_error_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['report.py', str(tmp_path / 'nowhere')])
    with pytest.raises(SystemExit, match="^error: '.*nowhere' does not exist"):
        runpy.run_path(str(ROOT / 'tools' / 'report.py'), run_name='__main__')


def test_make_look_draws_trains_on_and_reports():
    done = subprocess.run(
        ['make', '-n', 'look', 'VENV=env'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    steps = ['tools/make_shapes.py data/shapes', '--seed 0 --work-dir W --resume',
             'tools/report.py W -o report', 'xdg-open report/index.html']  # fmt: skip
    text = done.stdout.replace('work_dirs/retinanet_evit_m4_shapes', 'W')
    places = [text.index(step) for step in steps]
    assert places == sorted(places)


# ---- the page

CONFIG = """
_base_ = {base!r}
data = dict(data_root={data!r}, metainfo=dict(classes={classes!r}), {extra})
val_dataloader = dict(dataset=data)
val_evaluator = dict(ann_file={data!r} + '/annotations/instances_val.json')
optim_wrapper = dict(optimizer=dict(lr={lr}))
"""


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Return a function that makes a work dir whose detections are made instead of detected."""
    base = str(ROOT / 'configs' / 'retinanet_evit_m4_shapes.py')

    def make(name, classes=('a', 'b', 'c', 'd'), num_images=12, seed=0, lr=0.001, names=None,
             data=None, noise=0, kept=1.0, extra=''):  # fmt: skip
        truth, found = synthetic_detections(num_images, len(classes), seed)
        data = data or tmp_path / f'data_{name}'
        for category, label in zip(truth['categories'], classes, strict=True):
            category['name'] = label
        for image, file_name in zip(truth['images'], names or [], strict=False):
            image['file_name'] = file_name
        if not data.exists():
            (data / 'annotations').mkdir(parents=True)
            (data / 'annotations' / 'instances_val.json').write_text(json.dumps(truth))
            (data / 'val').mkdir()
        rng = np.random.default_rng(0)
        for image in truth['images']:
            pixels = rng.integers(120 - noise, 121 + noise, (96, 128, 3)).astype(np.uint8)
            _, encoded = cv2.imencode('.png', pixels)
            (data / 'val' / image['file_name']).write_bytes(encoded.tobytes())
        lines = [train_line(s, 2 / s, loss_cls=1 / s, loss_bbox=1 / s) for s in range(10, 200, 10)]
        lines += [f'{{"coco/bbox_mAP": {0.1 * e}, "step": {e}}}' for e in (1, 2)]
        config = CONFIG.format(
            base=base, data=str(data), classes=tuple(classes), lr=lr, extra=extra
        )
        folder = write_run(tmp_path / name, config, lines)
        (folder / 'epoch_2.pth').write_bytes(name.encode())
        results[name.encode()] = [d for d in found if rng.random() < kept]
        return folder

    results, calls = {}, []

    def evaluate(cfg, name, weights, device):
        calls.append((name, device))
        return results[weights]

    monkeypatch.setattr(detections, '_evaluate', evaluate)
    make.calls = calls
    return make


def opened(browser_page, path):
    requests = []
    browser_page.on('request', lambda request: requests.append(request.url))
    browser_page.goto(path.as_uri())
    browser_page.wait_for_selector('html[data-ready]', state='attached', timeout=60_000)
    assert [url for url in requests if not url.startswith('data:')] == [path.as_uri()]
    return browser_page


def test_the_page_of_one_training_in_a_browser(make_run, tmp_path, page):
    run = make_run('run')
    path = write_report([run], tmp_path / 'out', device='cpu')
    assert make_run.calls == [('epoch_2.pth', 'cpu')]
    assert path.stat().st_size < 5_000_000
    opened(page, path)

    charts = page.locator('.chart')
    assert charts.count() == 11
    for place in range(charts.count()):
        box = charts.nth(place).locator('svg').first.bounding_box()
        assert box['width'] > 150 and box['height'] > 40
    links = page.locator('nav a')
    assert links.all_inner_texts() == [
        'Summary', 'Training', 'Classes', 'Errors', 'Confusion', 'Size and shape', 'Scores',
        'Worst images', 'How it was made',
    ]  # fmt: skip
    for link in links.all():
        assert page.locator(f'section{link.get_attribute("href")}').count() == 1

    made = detections.detect(runs.read_runs([run])[0])
    found = analysis.analyse_detections(made.truth, made.found)
    cells = page.locator('#summary tbody td').all_inner_texts()
    assert cells == [f'{value:.3f}' for value in found.figures.twelve]
    rows = page.locator('#errors tbody tr').all_inner_texts()
    for row, kind, cost, count in zip(
        rows, tide.KINDS, found.errors.cost, found.errors.counts, strict=False
    ):
        assert row.split('\t')[:3] == [kind, f'{100 * cost:.2f}', str(count)]
    page.locator('#classes summary').click()
    classes = page.locator('#classes tbody tr').all_inner_texts()
    expected = [found.figures.ap[i] for i in np.argsort(-found.figures.ap)]
    assert [float(row.split('\t')[2]) for row in classes] == pytest.approx(expected, abs=6e-4)
    # a class is chosen for the curve
    select = page.locator('#classes select')
    before = page.locator('[data-chart=pr-0] svg').inner_html()
    select.select_option('c')
    page.wait_for_timeout(100)
    assert page.locator('[data-chart=pr-0] svg').inner_html() != before


def test_filters_show_the_images_with_that_mistake(make_run, tmp_path, page):
    opened(page, write_report([make_run('run')], tmp_path / 'out'))
    cards = page.locator('.card')
    costs = [float(text.split()[0]) for text in page.locator('.card h4 span').all_inner_texts()]
    assert len(costs) > 5 and costs == sorted(costs, reverse=True)
    tags = [card.locator('.tags').inner_text() for card in cards.all()]
    pairs = [card.get_attribute('data-mistakes') for card in cards.all()]
    for kind in ('missed', 'background'):
        page.locator('select[name=kind]').select_option(label=kind)
        seen = [card.is_visible() for card in cards.all()]
        assert seen == [kind in tag for tag in tags]
        assert 0 < sum(seen) < len(seen) or all(kind in tag for tag in tags)
        assert page.locator('.shown').inner_text() == f'{sum(seen)} of {len(seen)} images'
    page.locator('select[name=label]').select_option(label='b')
    kind = page.locator('select[name=kind]').input_value()
    seen = [card.is_visible() for card in cards.all()]
    assert seen == [f'{kind}:1' in pair.split() for pair in pairs]
    for name in ('kind', 'label'):
        page.locator(f'select[name={name}]').select_option('')
    assert all(card.is_visible() for card in cards.all())

    slider = page.locator('input[name=score]')
    for score in ('0.9', '0'):
        slider.fill(score)
        shown = page.evaluate(
            """() => [...document.querySelectorAll('[data-score]')].map(
                (box) => [Number(box.dataset.score), box.style.display !== 'none'])"""
        )
        assert all(visible == (own >= float(score)) for own, visible in shown)
        states = page.evaluate(
            """() => [...document.querySelectorAll('[data-found]')].map((box) =>
                [Number(box.dataset.found), box.querySelector('.is-right') !== null])"""
        )
        assert len(states) > 5
        assert all(right == (own >= float(score)) for own, right in states)


def test_hostile_names_are_text(make_run, tmp_path, page):
    run = make_run(
        '<img src=x onerror=hacked()>', (*HOSTILE, 'd'), names=['<b>x.png', "';alert(1);'.png"]
    )
    with (run / 'tiny.py').open('a') as config:
        config.write(f'note = {HOSTILE[0]!r}\n')
    page.on('dialog', lambda dialog: pytest.fail(dialog.message))
    opened(page, write_report([run], tmp_path / 'out'))
    page.locator('[data-chart=classes] path').first.hover(force=True)
    page.locator('#classes select').select_option(HOSTILE[1])
    page.wait_for_timeout(200)
    assert page.evaluate('window.hacked') is None
    assert page.locator('main img, main b:has-text("x.png")').count() == 0
    assert page.locator('h1').inner_text() == f'Training report: {run.name}'
    page.locator('#classes summary').click()
    table = page.locator('#classes tbody').inner_text()
    assert all(name in table for name in HOSTILE)
    assert page.locator('.card h4', has_text='<b>x.png').count() == 1
    page.locator('#made summary').click()
    assert HOSTILE[0] in page.locator('#made pre').inner_text()


def test_what_changed_between_two_trainings(make_run, tmp_path, page):
    before = make_run('before')
    after = make_run('after', lr=0.01, data=tmp_path / 'data_before', kept=0.7)
    opened(page, write_report([before, after], tmp_path / 'out', compare=True))
    both = [detections.detect(run) for run in runs.read_runs([before, after])]
    one, two = (analysis.analyse_detections(d.truth, d.found) for d in both)
    tables = [
        [row.split('\t') for row in table.locator('tbody tr').all_inner_texts()]
        for table in page.locator('#changes table').all()
    ]
    config, figures, costs, worse = tables[:4]
    assert ['optim_wrapper.optimizer.lr', '0.001', '0.01'] in config
    for row, old, new in zip(figures, one.figures.twelve, two.figures.twelve, strict=True):
        mark = '▲' if new > old else '▼'
        change = f'{mark} {new - old:+.3f}' if abs(new - old) >= 5e-4 else '±0'
        assert row[1:] == [f'{old:.3f}', f'{new:.3f}', change]
    assert [row[0] for row in costs] == list(tide.KINDS)
    changes = dict(zip(one.truth.classes, two.figures.ap - one.figures.ap, strict=True))
    fallen = sorted((c for c in changes if changes[c] < 0), key=changes.get)
    assert fallen and [row[0] for row in worse] == fallen

    change = two.image_cost - one.image_cost
    expected = [i for i in np.argsort(-change, kind='stable') if change[i] > 0][:6]
    assert expected
    cards = page.locator('#changes .cards').first.locator('h4').all_inner_texts()
    assert [text.split()[0] for text in cards] == [one.truth.file_names[i] for i in expected]
    assert page.locator('#changes .cards').first.locator('svg').count() == 3 * len(expected)
    # of curves, both are drawn, each in its colour
    legend = page.locator('[data-chart=loss]').inner_text()
    assert 'before' in legend and 'after' in legend
    best = page.locator('#summary td.best').count()
    assert best >= 12


def test_runs_on_other_data_are_compared_without_images(make_run, tmp_path):
    pair = [make_run('one'), make_run('two', classes=('a', 'x'), seed=1)]
    html = write_report(pair, tmp_path / 'out', compare=True).read_text()
    assert 'different images' in html and html.count('data-mistakes=') > 10
    assert re.search(r'Classes that got worse.*?\ba\b.*?Images that got', html, re.DOTALL)


def test_detections_are_made_once_for_a_checkpoint_and_kept_whole(make_run, tmp_path):
    def detect(folder, **options):
        return detections.detect(runs.read_runs([folder])[0], **options)

    run = make_run('run')
    cache = run / detections.CACHE
    untouched = {p: p.stat().st_mtime_ns for p in run.rglob('*') if p.is_file()}
    write_report([run], tmp_path / 'out')
    detect(run)
    assert len(make_run.calls) == 1
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched
    assert {p for p in run.rglob('*') if p.is_file()} - set(untouched) == {cache}
    cache.write_text(cache.read_text()[:-100])  # half a file is none
    detect(run)
    assert len(make_run.calls) == 2 and json.loads(cache.read_text())['results']
    with (run / 'tiny.py').open('a') as config:
        config.write('model = dict(test_cfg=dict(score_thr=0.3))\n')
    detect(run)  # another config finds other boxes
    assert len(make_run.calls) == 3
    detect(run, cfg_options={'model.test_cfg.score_thr': 0.4})
    assert len(make_run.calls) == 4


def test_a_fault_names_the_runs_file_and_not_a_temporary_one(monkeypatch):
    def refuse(config, checkpoint, **options):
        raise CheckpointError(f"'{checkpoint}' is\nnot readable")

    monkeypatch.setattr(detections, 'test', refuse)
    cfg = Config({'a': 1})
    with pytest.raises(DataError, match="^'best_1.pth' is not readable$"):
        detections._evaluate(cfg, 'best_1.pth', b'', None)


def test_a_training_that_is_writing_is_read_again(make_run, tmp_path, monkeypatch):
    run = make_run('run')
    found, asked = find_checkpoint(run), []

    def replaced(folder):
        asked.append(folder)
        return found if len(asked) > 1 else folder / 'best_gone.pth'

    monkeypatch.setattr(detections, 'find_checkpoint', replaced)
    assert detections.detect(runs.read_runs([run])[0]).checkpoint == 'epoch_2.pth'
    monkeypatch.setattr(detections, 'find_checkpoint', lambda folder: folder / 'best_gone.pth')
    with pytest.raises(DataError, match='try again'):
        detections.detect(runs.read_runs([run])[0])


def test_a_work_dir_that_cannot_be_written_to_costs_only_the_next_time(make_run, caplog):
    run = make_run('run')
    (run / detections.CACHE).mkdir()
    assert len(detections.detect(runs.read_runs([run])[0]).found.score) > 0
    assert list((run / detections.CACHE).iterdir()) == []
    assert not list(run.glob('*.partial'))


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ("val_dataloader = dict(dataset=dict(type='VOCDataset'))\n", 'validates on no CocoDataset'),
        ("val_evaluator = None\n", 'no val_dataloader and val_evaluator'),
    ],
)  # fmt: skip
def test_what_has_no_boxes_is_said(make_run, change, said):
    run = make_run('run')
    with (run / 'tiny.py').open('a') as config:
        config.write(change)
    with pytest.raises(DataError, match=said):
        detections.detect(runs.read_runs([run])[0])


def test_broken_annotations_and_wrong_options_are_named(make_run, tmp_path):
    run = runs.read_runs([make_run('run')])[0]
    with pytest.raises(DataError, match='--cfg-options do not fit'):
        detections.detect(run, cfg_options={'val_dataloader.dataset.pipeline.9.x': 1})
    (tmp_path / 'data_run' / 'annotations' / 'instances_val.json').write_text('{')
    with pytest.raises(DataError, match='not valid JSON'):
        detections.detect(run)


def test_absent_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(evit_mm.report, 'NEEDED', ('jinja2', 'no_such_package'))
    with pytest.raises(ConfigError, match=r'needs no_such_package: .*evit_mm\[report\]'):
        write_report([tmp_path], tmp_path)


def test_what_is_missing_is_said_on_the_page(make_run, tmp_path, page):
    bare = make_run('bare')
    (bare / 'epoch_2.pth').unlink()
    moved = make_run('moved', num_images=8)
    gone = make_run('gone', num_images=6)
    (tmp_path / 'data_moved').rename(tmp_path / 'elsewhere')
    for image in (tmp_path / 'data_gone' / 'val').iterdir():
        image.unlink()
    new = write_run(tmp_path / 'new', 'model = dict()\n')
    opened(page, write_report([bare, moved, gone, new], tmp_path / 'out'))
    notes = page.locator('.note').all_inner_texts()
    assert any(n.startswith('bare:') and 'no checkpoint yet' in n for n in notes)
    assert any(n.startswith('moved:') and 'are not there' in n and 'data_root=' in n for n in notes)
    assert any('cannot be read, so only their boxes' in n for n in notes)
    assert any(n.startswith('new:') and 'Nothing has been logged' in n for n in notes)
    assert any(n.startswith('new:') and 'no val_dataloader' in n for n in notes)
    assert page.locator('.empty').count() > 2
    assert page.locator('.tile').count() == 4 and page.locator('#summary tbody tr').count() == 1
    # said where the data are now, the page has them
    options = {
        'val_dataloader.dataset.data_root': str(tmp_path / 'elsewhere'),
        'val_evaluator.ann_file': str(tmp_path / 'elsewhere/annotations/instances_val.json'),
    }
    html = write_report([moved], tmp_path / 'out', cfg_options=options).read_text()
    assert 'No detections are shown' not in html and 'data:image/webp' in html


def test_a_page_stays_under_its_size_whatever_the_pictures(make_run, tmp_path, monkeypatch):
    run = make_run('run', classes=tuple(f'class {i}' for i in range(120)), num_images=50, noise=100)
    whole = write_report([run], tmp_path / 'whole').read_text()
    assert len(whole) < 5_000_000
    assert whole.count('no picture') == 0
    assert 'The best and the worst 50 of 120 are drawn' in whole
    assert 25 < whole.count('<article') <= pictures.MAX_IMAGES
    monkeypatch.setattr(page_module, 'MAX_BYTES', len(whole) - 200_000)
    less = write_report([run], tmp_path / 'less').read_text()
    assert len(less.encode()) < page_module.MAX_BYTES
    assert 0 < less.count('data:image/webp') < whole.count('data:image/webp')
    monkeypatch.setattr(page_module, 'MAX_BYTES', 500_000)  # less than the charts' script alone
    with pytest.raises(ConfigError, match='give fewer trainings'):
        write_report([run], tmp_path / 'none')
    assert not (tmp_path / 'none').exists()


def test_pictures_cover_every_class_and_kind(small):
    things, seen, matches, kinds = analysed(*small[:2])
    cost = tide.cost_of_images(things, seen, kinds, matches)
    mistakes = pictures.mistakes_of(analysis.analyse_detections(things, seen))
    chosen = pictures.choose(cost, mistakes, 12)
    assert len(chosen) == 12 and cost[chosen].tolist() == sorted(cost[chosen], reverse=True)
    everything = pictures.choose(cost, mistakes)
    for column in (mistakes.kind, mistakes.label):
        shown = np.isin(mistakes.image, everything)
        assert set(column[shown].tolist()) == set(column.tolist())
    assert chosen[0] == np.argmax(cost)


def test_the_comparison_beside_the_runs_is_drawn(make_run, tmp_path, page):
    run = make_run('run')
    table = ROOT / 'docs' / 'comparison' / 'table.json'
    given = write_report([run], tmp_path / 'given', table=table)
    assert 'Backbones compared' not in write_report([run], tmp_path / 'without').read_text()
    (tmp_path / 'table.json').write_text(table.read_text())
    beside = opened(page, write_report([run], tmp_path / 'beside'))
    for name in ('latency', 'flops'):
        text = beside.locator(f'[data-chart={name}]').inner_text()
        assert 'EfficientViT-M4' in text and 'MobileNetV2' in text
    rows = json.loads(table.read_text())['rows']
    content = re.search(r'id="charts">(.*?)</script>', given.read_text())[1]
    spec = json.loads(content)['latency']
    points = {row['name']: row for row in spec['data']['values']}
    for row in rows:
        assert points[row['label']]['AP'] == pytest.approx(row['AP'])
        assert points[row['label']]['latency'] == 1000 * row['latency_seconds']['median']


def test_a_foreign_table_beside_the_runs_is_a_note_and_a_given_one_is_read_first(
    make_run, tmp_path
):
    run = make_run('run')
    foreign = tmp_path / 'table.json'
    foreign.write_text('[1, 2]')
    with pytest.raises(DataError, match='is not a table'):
        write_report([run], tmp_path / 'given', table=foreign)
    assert make_run.calls == []
    html = write_report([run], tmp_path / 'out').read_text()
    assert 'No comparison of backbones is shown' in html and 'Worst images' in html


def test_two_runs_are_compared_where_one_has_no_detections(make_run, tmp_path):
    pair = [make_run('one'), make_run('two', lr=0.5)]
    (pair[1] / 'epoch_2.pth').unlink()
    html = write_report(pair, tmp_path / 'out', compare=True).read_text()
    changes = re.search(r'<section id="changes">.*?</section>', html, re.DOTALL)[0]
    assert 'optim_wrapper.optimizer.lr' in changes and 'Figures' not in changes
    assert 'no checkpoint yet' in html


def test_the_page_fits_a_phone(make_run, tmp_path, page):
    page.set_viewport_size({'width': 375, 'height': 800})
    opened(page, write_report([make_run('run')], tmp_path / 'out'))
    assert page.evaluate('document.documentElement.scrollWidth') <= 375
    figures, facts = (page.locator(f'.tile {part}').first for part in ('.figures', 'dl'))
    above, below = figures.bounding_box(), facts.bounding_box()
    assert above['y'] + above['height'] <= below['y']


def test_a_config_of_odd_types_costs_its_part_or_is_named(make_run, tmp_path):
    odd = make_run('odd')
    with (odd / 'tiny.py').open('a') as config:
        config.write('val_dataloader = 3\n')
    assert 'No detections are shown' in write_report([odd], tmp_path / 'out').read_text()
    for end, said in (
        ('SystemExit(3)', r'SystemExit: 3\)'),
        ('RuntimeError(5)', r'RuntimeError: 5\)'),
    ):
        broken = write_run(tmp_path / end, f'raise {end}\n')
        with pytest.raises(ConfigError, match=said):
            write_report([broken], tmp_path / 'out')


@pytest.mark.slow
def test_a_real_training_is_evaluated_and_shown(tmp_path, page):
    from evit_mm.runner.train import train

    data = make_shapes(tmp_path / 'set', 16, 8, size=(96, 80), quiet=True)
    config = write_config(tmp_path, data, 'train_cfg.update(max_epochs=1, val_interval=1)\n')
    work = tmp_path / 'work'
    train(config, work_dir=str(work), seed=1, device='cpu')
    before = {p.relative_to(work) for p in work.rglob('*')}
    opened(page, write_report([work], tmp_path / 'out', device='cpu'))
    assert {p.relative_to(work) for p in work.rglob('*')} - before == {
        (work / detections.CACHE).relative_to(work)
    }
    run = runs.read_runs([work])[0]
    cells = page.locator('#summary tbody td').all_inner_texts()
    logged = {k.removeprefix('coco/'): v[-1][1] for k, v in run.evaluations.items()}
    names = ['bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'bbox_mAP_s', 'bbox_mAP_m']
    assert logged['bbox_mAP_50'] > 0
    assert [float(cell) for cell in cells[:5]] == [logged[name] for name in names]
    made = page.locator('#made').inner_text()
    assert 'seed\t1\n' in made and 'versions\tevit_mm' in made  # of its summary.json
    assert page.locator('.card image, .card use').count() > 0


def test_commands_of_the_docs_page(make_run, tmp_path, monkeypatch):
    for name in ('retinanet_evit_m4_shapes', 'a', 'b'):
        make_run(f'work_dirs/{name}', num_images=6)
    shutil.copytree(tmp_path / 'data_work_dirs' / 'a', tmp_path / 'DIR')
    monkeypatch.chdir(tmp_path)
    text = '\n'.join(blocks(ROOT / 'docs' / 'report.md', 'bash')).replace('\\\n', ' ')
    commands = [shlex.split(line, comments=True) for line in text.strip().splitlines() if line]
    assert len(commands) == 3
    for python, tool, *arguments in commands:
        assert python == 'python'
        monkeypatch.setattr(sys, 'argv', [tool, *arguments])
        runpy.run_path(str(ROOT / tool), run_name='__main__')
        html = Path('report', 'index.html').read_text()
        assert 'Worst images' in html
        assert ('What changed' in html) == ('--compare' in arguments)
    assert 'No detections are shown' not in html
    # the folder of the last command was named, where the config names another
    assert len(make_run.calls) == 4
