"""Check before a training that the evaluator gives the metrics that are asked of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook

from ..data.counts import not_evaluated
from ..errors import ConfigError
from ..utils.text import did_you_mean
from .config import config_name
from .weights import unwrap


def check_metrics(runner: Any, evaluator: Any, hooks: Iterable[Hook] = ()) -> None:
    """Check an evaluator against the model of a runner, and against hooks that need its metrics.

    Raises:
        ConfigError: A hook needs a metric that never comes, or the evaluator needs masks and the
            model predicts only boxes.
    """
    metrics = getattr(evaluator, 'metrics', [])
    for metric in metrics:
        if 'segm' in getattr(metric, 'metrics', ()) and not predicts_masks(runner.model):
            raise ConfigError(
                f"{config_name(runner.cfg)}: {type(metric).__name__} has metric='segm', but "
                f"{type(unwrap(runner.model)).__name__} predicts no masks; use metric='bbox'"
            )
    # of mmdet's MultiDatasetsEvaluator
    prefixes = [f'{prefix}/' for prefix in getattr(evaluator, 'dataset_prefixes', ())]
    named = list(zip(prefixes or [''] * len(metrics), metrics, strict=False))
    names = Counter(name for prefix, metric in named for name in metric_names(metric, prefix) or ())
    twice = [name for name, number in names.items() if number > 1]
    if twice:
        raise ConfigError(
            f"{config_name(runner.cfg)}: two evaluators give a metric '{twice[0]}', which mmengine "
            "refuses after the evaluation; give each its own prefix, such as prefix='other'"
        )
    for hook in hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            first = metrics[0] if metrics else None
            if 'auto' in hook.key_indicators and getattr(first, 'classwise', False):
                raise ConfigError(
                    f"{config_name(runner.cfg)}: save_best='auto' takes the first metric, which is "
                    'the AP of one class because of classwise=True; name the metric, such as '
                    "save_best='coco/bbox_mAP'"
                )
            for name in hook.key_indicators:
                _check_name(runner, 'default_hooks.checkpoint.save_best', name, named)
        elif isinstance(hook, EarlyStoppingHook):
            _check_name(runner, 'EarlyStoppingHook.monitor', hook.monitor, named)


def _check_name(runner: Any, key: str, name: str, named: list[tuple[str, BaseMetric]]) -> None:
    if name == 'auto' or any(_gives(metric, prefix, name) for prefix, metric in named) or not named:
        return
    names = [name for prefix, metric in named for name in metric_names(metric, prefix) or ()]
    prefixes = sorted({f'{prefix}{metric.prefix}/...' for prefix, metric in named})
    fix = f'choose from {", ".join(names or prefixes)}'
    kinds = ', '.join(type(metric).__name__ for _, metric in named)
    raise ConfigError(
        f"{config_name(runner.cfg)}: {key} is '{name}', which val_evaluator ({kinds}) does not "
        f'give{did_you_mean(name, names)}; {fix}'
    )


def _gives(metric: BaseMetric, prefix: str, name: str) -> bool:
    """Return whether a metric gives a value of this name, or cannot be known not to."""
    names = metric_names(metric, prefix)
    if names is None:
        return name.startswith(prefix + (f'{metric.prefix}/' if metric.prefix else ''))
    of_class = getattr(metric, 'classwise', False) and name.endswith('_precision')
    return name in names or of_class


def metric_names(metric: BaseMetric, prefix: str) -> list[str] | None:
    """Return the names of the values of CocoMetric, HotCocoMetric and VOCMetric.

    ``prefix`` comes before the metric's own prefix. The result is None for other metrics. A
    subclass, such as mmdet's LVISMetric, can have other names.
    """
    from mmdet.evaluation import CocoMetric, VOCMetric

    from ..evaluation.coco_metric import PRECISIONS, RECALLS, HotCocoMetric

    names: list[str] = []
    if type(metric) in (CocoMetric, HotCocoMetric):
        if metric.format_only:
            return []
        for kind in metric.metrics:
            if kind == 'proposal_fast':
                names += [f'AR@{number}' for number in metric.proposal_nums]
            elif kind == 'proposal':
                names += metric.metric_items or RECALLS
            else:
                missing = not_evaluated(metric.iou_thrs)
                items = metric.metric_items or PRECISIONS
                names += [f'{kind}_{item}' for item in items if item not in missing]
    elif type(metric) is VOCMetric and metric.metric == 'mAP':
        names += ['mAP', *(f'AP{int(threshold * 100):02d}' for threshold in metric.iou_thrs)]
    else:
        return None
    return [f'{prefix}{metric.prefix}/{name}' for name in names]


def predicts_masks(model: Any) -> bool:
    """Return whether a model says that it has masks, or a part of it is named for masks.

    A part is named so in all of mmdet's models with masks, an exported file says so.
    """
    model = unwrap(model)
    if getattr(model, 'with_mask', False):
        return True
    modules = model.named_modules()
    parts = (f'{name} {type(module).__name__}'.lower() for name, module in modules)
    return any(word in part for part in parts for word in ('mask', 'panoptic', 'segm'))
