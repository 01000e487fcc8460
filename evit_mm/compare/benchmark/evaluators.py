"""COCO's evaluation by pycocotools and by faster-coco-eval."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from ...evaluation.synthetic_detections import synthetic_detections


def compare_evaluators(num_images: int, seed: int = 0) -> dict[str, Any]:
    """Time COCO's evaluation of boxes by pycocotools and by faster-coco-eval.

    Both load the results and evaluate, accumulate and summarise them, each once, on fresh copies
    of :func:`~evit_mm.evaluation.synthetic_detections.synthetic_detections`.

    Args:
        num_images: Images to evaluate; COCO's val2017 has 5000.
        seed: Of the detections.

    Returns:
        ``pycocotools`` and ``faster-coco-eval``, each with ``load`` and ``evaluate`` in seconds and
        COCO's twelve ``figures``; ``detections``, their number; ``ratio`` of the two's seconds in
        all; ``difference``, the largest between their figures.

    Raises:
        ConfigError: faster-coco-eval is not installed.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from ...evaluation.coco_metric import fast_evaluator

    result: dict[str, Any] = {}
    for name, evaluator in (('pycocotools', COCOeval), ('faster-coco-eval', fast_evaluator())):
        truth, found = synthetic_detections(num_images, seed=seed)
        with redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = truth
            coco.createIndex()
            start = time.perf_counter()
            results = coco.loadRes(found)
            loaded = time.perf_counter()
            evaluation = evaluator(coco, results, 'bbox')
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            done = time.perf_counter()
        result[name] = {
            'load': loaded - start,
            'evaluate': done - loaded,
            'figures': evaluation.stats.tolist(),
        }
    slow, fast = result.values()
    differences = np.abs(np.subtract(slow['figures'], fast['figures']))
    return {
        **result,
        'detections': len(found),
        'ratio': (slow['load'] + slow['evaluate']) / (fast['load'] + fast['evaluate']),
        'difference': float(differences.max()),
    }
