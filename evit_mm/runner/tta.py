"""Test-time augmentation: evaluate on several views of each image and merge the predictions.

mmdet's ``DetTTAModel`` flips the boxes of each view back and merges them by NMS. mmpretrain's
``AverageClsScoreTTA`` averages the scores of a classifier.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from ..data.pipeline import loading_steps, step_name
from ..errors import ConfigError
from .config import config_name, is_classifier

# of mmdet's tools/test.py, for models whose test_cfg has no NMS
DEFAULT_MERGING = {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100}
# the unflipped view comes first: mmdet keeps its ground truth and its sizes
FLIPS = [{'type': 'RandomFlip', 'prob': prob} for prob in (0.0, 1.0)]
META_KEYS = (
    *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    *('flip', 'flip_direction'),
)


def use_tta(cfg: Config, scales: Sequence[float] = ()) -> None:
    """Wrap the model of a config, and replace its test pipelines, for test-time augmentation.

    As in mmdet's ``tools/test.py``, these are ``tta_model`` and ``tta_pipeline`` of the config.
    Without ``tta_pipeline``, the views are those of the test pipeline, each with and without a
    horizontal flip. Without ``tta_model``, the views of a detector are merged by the NMS of its
    ``test_cfg``.

    Args:
        cfg: Config. Its ``model``, ``test_dataloader``, ``tta_model`` and ``tta_pipeline`` change.
        scales: Factors of the image size, one view each. Empty keeps the size.

    Raises:
        ConfigError: The scales are invalid, or the test pipeline has no size to scale.
    """
    add_tta(cfg, scales)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in _innermost(cfg.test_dataloader.dataset):
        dataset['pipeline'] = copy.deepcopy(cfg.tta_pipeline)


def add_tta(cfg: Config, scales: Sequence[float] = ()) -> None:
    """Add ``tta_model`` and ``tta_pipeline`` to a config that does not have them."""
    name = config_name(cfg)
    if any(not 0 < scale < math.inf for scale in scales):
        raise ConfigError(f'--tta: scales must be positive numbers, got {_words(scales)}')
    if scales and (is_classifier(cfg) or 'tta_pipeline' in cfg):
        reason = 'is for a classifier' if is_classifier(cfg) else 'has a tta_pipeline'
        raise ConfigError(f'{name} {reason}, so --tta {_words(scales)} cannot scale; use --tta')
    if 'tta_model' not in cfg:
        cfg.tta_model = _merging(cfg)
    if 'tta_pipeline' not in cfg:
        pipelines = [each.get('pipeline') for each in _innermost(cfg.test_dataloader.dataset)]
        if not pipelines or not pipelines[0] or any(p != pipelines[0] for p in pipelines):
            raise ConfigError(
                f'{name}: --tta needs one pipeline for all data sets of test_dataloader; set '
                'tta_pipeline in the config'
            )
        views = _views_of_classifier if is_classifier(cfg) else _views
        cfg.tta_pipeline = views(pipelines[0], scales or (1.0,), name)


def _merging(cfg: Config) -> dict[str, Any]:
    if is_classifier(cfg):
        return {'type': 'AverageClsScoreTTA'}
    test_cfg = cfg.model.get('test_cfg') or {}
    test_cfg = test_cfg.get('rcnn') or test_cfg  # of a two-stage detector
    found = {key: test_cfg[key] for key in DEFAULT_MERGING if test_cfg.get(key)}
    return {'type': 'DetTTAModel', 'tta_cfg': copy.deepcopy({**DEFAULT_MERGING, **found})}


def _views(steps: Sequence[Any], scales: Sequence[float], name: str) -> list[Any]:
    """Return a pipeline with a view for each scale, with and without a flip.

    The flip comes directly after the last step that resizes. After padding, the boxes could not be
    flipped back, and ground truth that is loaded later keeps the original image.
    """
    resizing = [place for place, step in enumerate(steps) if 'Resize' in step_name(step)]
    first = resizing[-1] if resizing else len(loading_steps(steps))
    resized: list[list[Any]] = []
    if resizing:
        resized = [[_scaled(steps[first], scale, name) for scale in scales]]
    elif [*scales] != [1]:
        raise ConfigError(
            f'{name}: --tta {_words(scales)} needs a Resize step in the test pipeline; add one, or '
            'use --tta without scales'
        )
    rest = [copy.deepcopy(step) for step in steps[first + len(resized) :]]
    for step in rest:
        if step_name(step) == 'Pad' and step.get('size'):
            step['size'] = tuple(math.ceil(x * max(scales)) for x in step['size'])
    keys = rest[-1].get('meta_keys') or META_KEYS
    rest[-1]['meta_keys'] = tuple(dict.fromkeys([*keys, *META_KEYS[-2:]]))
    views = [*resized, copy.deepcopy(FLIPS), *([step] for step in rest)]
    return [*copy.deepcopy(list(steps[:first])), {'type': 'TestTimeAug', 'transforms': views}]


def _views_of_classifier(steps: Sequence[Any], _: Sequence[float], __: str) -> list[Any]:
    """Return a pipeline that ends with a flip, as in mmpretrain's ``tools/test.py``."""
    views = [copy.deepcopy(FLIPS), [copy.deepcopy(steps[-1])]]
    return [*copy.deepcopy(list(steps[:-1])), {'type': 'TestTimeAug', 'transforms': views}]


def _scaled(step: Mapping[str, Any], scale: float, name: str) -> dict[str, Any]:
    """Return a step that resizes to another size."""
    found = copy.deepcopy(dict(step))
    if scale == 1:
        return found
    keys = [key for key in ('scale', 'width', 'height') if found.get(key)]
    for key in keys:
        found[key] = _times(found[key], scale)
    if not keys and found.get('scale_factor'):
        factor = found['scale_factor']
        many = isinstance(factor, (list, tuple))
        found['scale_factor'] = tuple(x * scale for x in factor) if many else factor * scale
    elif not keys:
        raise ConfigError(
            f'{name}: --tta cannot scale the step {step_name(step)} of the test pipeline, which '
            'has neither scale nor scale_factor; use --tta without scales, or set tta_pipeline'
        )
    return found


def _times(size: Any, scale: float) -> Any:
    if isinstance(size, (list, tuple)):
        return tuple(_times(x, scale) for x in size)
    return max(round(size * scale), 1)


def _innermost(dataset: Any) -> Iterator[Any]:
    """Yield the data sets in a config of data sets that are no wrappers around others."""
    inner = dataset.get('dataset') or dataset.get('datasets')
    for each in [inner] if isinstance(inner, Mapping) else inner or ():
        yield from _innermost(each)
    if not inner:
        yield dataset


def _words(scales: Sequence[float]) -> str:
    return ' '.join(f'{scale:g}' for scale in scales)
