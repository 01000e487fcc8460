"""COCO's evaluation: matched by hotcoco, summarised by pycocotools."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError

if TYPE_CHECKING:
    import hotcoco

HINT = "pip install 'hotcoco>=1.3'"


def require_hotcoco(user: str) -> None:
    """Refuse to go on where hotcoco is not installed.

    Args:
        user: What needs it, for the message.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import hotcoco  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'{user} needs the package hotcoco: {HINT}') from error


def precision(evaluator: hotcoco.COCOeval) -> np.ndarray:
    """Return the precision after ``accumulate()``.

    Returns:
        ``(T, R, K, A, M)``: IoU thresholds, recalls, classes, ranges of the area and numbers of
        detections; -1 where there is no object.
    """
    if evaluator.eval is None:
        raise ValueError('accumulate() comes first')
    return evaluator.eval['precision']


def summarize(evaluator: hotcoco.COCOeval) -> np.ndarray:
    """Print COCO's table and return its twelve figures.

    hotcoco's own summary takes AP at the last of ``max_dets``; pycocotools takes the one that is
    100, and -1 where there is none. This is pycocotools' summary of hotcoco's arrays.

    Args:
        evaluator: After ``evaluate()`` and ``accumulate()``.

    Returns:
        ``(12,)`` in the order of ``COCOeval.stats``.
    """
    from pycocotools.cocoeval import COCOeval

    summary = COCOeval(iouType=evaluator.params.iou_type)
    summary.params.maxDets = evaluator.params.max_dets
    summary.params.iouThrs = np.array(evaluator.params.iou_thrs)
    summary.eval = evaluator.eval
    summary.summarize()
    return summary.stats
