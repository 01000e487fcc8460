"""COCO's evaluation by faster-coco-eval; needs mmdet, so configs import it by name."""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any

from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from pycocotools.cocoeval import COCOeval

from ..errors import ConfigError


# the OneDL fork has a class of this name whose figures are not CocoMetric's
@METRICS.register_module(force=True)
class FasterCocoMetric(CocoMetric):
    """mmdet's CocoMetric whose matching runs in C++: the same figures, many times sooner.

    Arguments as mmdet's; ``use_mp_eval`` changes nothing, since one process is fast enough.

    Raises:
        ConfigError: faster-coco-eval is not installed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fast_evaluator()  # or the first epoch would be over before its absence is noticed
        super().__init__(*args, **kwargs)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return mmdet's figures."""
        # mmdet's method finds its evaluator in its module's globals. To run the same code with
        # globals of its own leaves the module as it is for other metrics, in other threads too.
        method = CocoMetric.compute_metrics
        fast = dict.fromkeys(('COCOeval', 'COCOevalMP'), fast_evaluator())
        names = {**method.__globals__, **fast}
        return FunctionType(method.__code__, names, closure=method.__closure__)(self, results)


@cache
def fast_evaluator() -> type:
    """Return a class that takes the place of pycocotools' COCOeval.

    Raises:
        ConfigError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError as error:
        raise ConfigError(
            'FasterCocoMetric needs the package faster-coco-eval: pip install '
            "'faster-coco-eval==1.8.0', or set the evaluator's type to CocoMetric"
        ) from error

    class FastCOCOeval(COCOeval_faster):
        # its own takes every AP at the last of maxDets and adds figures between the twelve
        summarize = COCOeval.summarize

    return FastCOCOeval
