"""Whole detectors, stage by stage: mmdet's own path and the fused one, on the same weights."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ...deploy import fuse_detector
from ...deploy.export.check import Agreement, compare
from . import forms

# config, size as (height, width) that the network sees, batch
CASES = (
    ('retinanet_evit_m4_coco', (800, 1344), 1),
    ('retinanet_evit_m4_coco', (640, 640), 1),
    ('retinanet_evit_m4_coco', (640, 640), 8),
    ('retinanet_lite_evit_m0_coco', (640, 640), 1),
    ('retinanet_lite_evit_m0_coco', (640, 640), 8),
    ('retinanet_lite_evit_m2_coco', (640, 640), 1),
    ('retinanet_lite_evit_m4_coco', (640, 640), 1),
)
PHOTO = (480, 640)
PASSING = 1000  # scores above the threshold, about what a trained detector has


class Case(dict[str, Callable[[], object]]):
    """Functions to time, named ``'STAGE, mmdet'`` and ``'STAGE, fused'``.

    Attributes:
        group: Detector, size and batch.
        agreement: Whether both detect the same.
        slow: A call takes many seconds.
    """

    def __init__(self, group: str, agreement: Agreement, slow: bool) -> None:
        super().__init__()
        self.group, self.agreement, self.slow = group, agreement, slow


@dataclass
class _Detector:
    plain: nn.Module
    pipeline: Any


def cases(
    device: str = 'cpu', chosen: Iterable[tuple[str, tuple[int, int], int]] | None = None
) -> Iterator[Case]:
    """Yield what is timed together, one detector, size and batch after the other.

    Args:
        device: Where the detectors are; on a GPU also in other layouts and under AMP.
        chosen: Config, size as (height, width) and batch of each; default :data:`CASES`.
    """
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / 'photo.jpg'
        _write_photo(photo)
        for name, size, batch in CASES if chosen is None else chosen:
            detector = _build(name, size, device)
            yield _case(name, detector, size, batch, photo)


def _case(name: str, detector: _Detector, size: tuple[int, int], batch: int, photo: Path) -> Case:
    data = _loaded(detector.pipeline, photo)
    data = {key: value * batch for key, value in data.items()}
    prepared = detector.plain.data_preprocessor(copy.deepcopy(data), False)
    _give_scores(detector.plain, prepared['inputs'])
    fused = fuse_detector(detector.plain)
    found = [_predict(model, prepared) for model in (detector.plain, fused)]
    rows = zip(*found, strict=True)
    pairs = [tuple(sample.pred_instances.cpu() for sample in row) for row in rows]
    cfg = detector.plain.bbox_head.test_cfg
    agreement = compare(pairs, cfg.score_thr, cfg.max_per_img)
    group = f'{name}, {size[0]}x{size[1]}, batch {batch}'
    case = Case(group, agreement, slow=size[0] * size[1] * batch > 1_000_000)
    for path, model in (('mmdet', detector.plain), ('fused', fused)):
        case[f'whole, from tensors, {path}'] = whole = _whole(model, data)
        if prepared['inputs'].device.type == 'cuda':
            case[f'whole, from tensors, {path} AMP'] = forms.amp(whole, 'cuda')
        if batch > 1:
            continue
        case[f'whole, from the file, {path}'] = _from_file(model, detector.pipeline, photo)
        inputs = prepared['inputs']
        with torch.inference_mode():
            features = model.backbone(inputs)
            levels = model.neck(features)
            maps = model.bbox_head(levels)
        metas = [sample.metainfo for sample in prepared['data_samples']]
        case[f'normalise and pad, {path}'] = _whole(model.data_preprocessor, data, False)
        case[f'backbone, {path}'] = forms.eager(model.backbone, inputs)
        case[f'neck, {path}'] = forms.eager(model.neck, features)
        case[f'head, {path}'] = forms.eager(model.bbox_head, levels)
        case[f'boxes and NMS, {path}'] = _boxes(model.bbox_head, maps, metas)
    if prepared['inputs'].device.type == 'cuda':
        contiguous = copy.deepcopy(detector.plain)
        contiguous.backbone.patch_embed[0].memory_format = torch.contiguous_format
        last = copy.deepcopy(detector.plain).to(memory_format=torch.channels_last)
        for path, model in (('contiguous', contiguous), ('weights in channels last too', last)):
            case[f'whole, from tensors, mmdet {path}'] = whole = _whole(model, data)
            case[f'whole, from tensors, mmdet {path} AMP'] = forms.amp(whole, 'cuda')
    if batch == 1:
        case['decode and resize, mmdet'] = lambda: _loaded(detector.pipeline, photo)
    return case


def _build(name: str, size: tuple[int, int], device: str) -> _Detector:
    from mmcv.transforms import Compose
    from mmdet.registry import MODELS
    from mmdet.utils import get_test_pipeline_cfg

    from ...runner.config import load_config
    from .suites import config_path, with_statistics

    cfg = load_config(config_path(name))
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    plain = MODELS.build(cfg.model)
    plain.init_weights()
    with_statistics(plain.eval()).to(device)
    steps = [step for step in get_test_pipeline_cfg(cfg) if step['type'] != 'LoadAnnotations']
    for step in steps:
        if step['type'] == 'Resize':
            # exactly this size, so that the photograph fills it
            step.update(scale=(size[1], size[0]), keep_ratio=False)
    return _Detector(plain, Compose([dict(step) for step in steps]))


def _give_scores(detector: nn.Module, inputs: Tensor) -> None:
    """Scale the last layer of the classification so that about 1000 scores per image pass."""
    head = detector.bbox_head
    threshold = torch.tensor(head.test_cfg.score_thr).logit()
    with torch.inference_mode():
        logits = head(detector.extract_feat(inputs[:1]))[0]
        values = torch.cat([x.flatten() for x in logits]) - head.retina_cls.bias.mean()
        wanted = float(threshold - head.retina_cls.bias.mean())
        factor = wanted / float(values.topk(PASSING).values[-1])
    head.retina_cls.weight.data *= factor


def _loaded(pipeline: Any, photo: Path) -> dict[str, list]:
    data = pipeline({'img_path': str(photo), 'img_id': 0})
    return {'inputs': [data['inputs']], 'data_samples': [data['data_samples']]}


def _predict(model: nn.Module, prepared: dict[str, Any]) -> list:
    with torch.inference_mode():
        samples = copy.deepcopy(prepared['data_samples'])
        return model.predict(prepared['inputs'], samples, rescale=False)


def _whole(model: nn.Module, data: dict[str, Any], *args: Any) -> Callable[[], object]:
    call = model.test_step if hasattr(model, 'test_step') else model

    def run() -> object:
        with torch.inference_mode():
            return call(dict(data), *args)

    return run


def _from_file(model: nn.Module, pipeline: Any, photo: Path) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model.test_step(_loaded(pipeline, photo))

    return run


def _boxes(head: nn.Module, maps: Any, metas: list[dict]) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return head.predict_by_feat(*maps, batch_img_metas=metas, rescale=True)

    return run


def _write_photo(path: Path) -> None:
    """Write something as smooth as a photograph and as long in JPEG."""
    rng = np.random.default_rng(0)
    height, width = PHOTO
    image = np.zeros((height, width, 3), np.float32)
    for side in (8, 32, 120):
        noise = rng.normal(size=(side, side, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 240 / side**0.5
    cv2.imwrite(str(path), (128 + image).clip(0, 255).astype(np.uint8))
