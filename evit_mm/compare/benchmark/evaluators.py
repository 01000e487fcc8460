"""Speed of COCO's evaluation with pycocotools and with hotcoco."""

from __future__ import annotations

import io
import time
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from ...evaluation.coco_eval import summarize
from ...evaluation.synthetic_detections import synthetic_detections


def time_evaluators(num_images: int, seed: int = 0) -> dict[str, Any]:
    """Time COCO's box evaluation with pycocotools and with hotcoco.

    The time includes loading, evaluation, accumulation and summary, each once, on fresh copies of
    :func:`~evit_mm.evaluation.synthetic_detections.synthetic_detections`.

    Args:
        num_images: Number of images; COCO val2017 has 5000.
        seed: Random seed of the detections.

    Returns:
        ``pycocotools`` and ``hotcoco``, each with ``seconds`` and the twelve COCO ``figures``;
        ``detections``, the number of detections; ``difference``, the largest difference between
        the figures.
    """
    import hotcoco
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def read(dataset: dict[str, Any]) -> COCO:
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        return coco

    def stats(evaluator: COCOeval) -> np.ndarray:
        evaluator.summarize()
        return evaluator.stats

    result: dict[str, Any] = {}
    for name, load, evaluator_type, figures in (
        ('pycocotools', read, COCOeval, stats),
        ('hotcoco', hotcoco.COCO, hotcoco.COCOeval, summarize),
    ):
        truth, found = synthetic_detections(num_images, seed=seed)
        with redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            coco = load(truth)
            evaluator = evaluator_type(coco, coco.loadRes(found), 'bbox')
            evaluator.evaluate()
            evaluator.accumulate()
            values = figures(evaluator)
            seconds = time.perf_counter() - start
        result[name] = {'seconds': seconds, 'figures': values.tolist()}
    slow, fast = (part['figures'] for part in result.values())
    difference = float(np.abs(np.subtract(slow, fast)).max())
    return {**result, 'detections': len(found), 'difference': difference}
