"""Speed of whole detectors and of their stages: mmdet and fused, with the same weights."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ...data.pipeline import without_annotations
from ...deploy import fuse_detector
from ...deploy.export.check import Agreement, compare_detections
from . import forms, networks
from .timing import Call, Row, Setting, time_rows

# config, (height, width) of the network input, batch size
CASES = (
    ('retinanet_evit_m4_coco', (800, 1344), 1),
    ('retinanet_evit_m4_coco', (640, 640), 1),
    ('retinanet_evit_m4_coco', (640, 640), 8),
    ('retinanet_lite_evit_m0_coco', (640, 640), 1),
    ('retinanet_lite_evit_m0_coco', (640, 640), 8),
    ('retinanet_lite_evit_m2_coco', (640, 640), 1),
    ('retinanet_lite_evit_m4_coco', (640, 640), 1),
)
PHOTO = (640, 480)
PASSING = 1000  # number of scores above the threshold, about as for a trained detector
SLOW = 1_000_000  # pixels per batch above which a call takes many seconds


def measure(setting: Setting) -> tuple[list[Row], list[str]]:
    """Time the prediction of mmdet's detector and of the fused detector, in total and by stage."""
    rows, notes = [], []
    for config, size, batch in CASES:
        slow = size[0] * size[1] * batch > SLOW
        rounds = max(2, setting.rounds // 3) if slow else setting.rounds
        with photo() as file:
            calls, agreement = prediction(config, size, batch, file, setting.device)
            rows += time_rows(calls, rounds)
        notes.append(f'- {rows[-1].group}: {agreement}.')
    note = (
        'The weights are random. The scores are scaled so that about 1,000 pass the threshold. '
        'The image is a JPEG file of 640x480. The baseline is the same stage in mmdet with the '
        'same weights. These lines compare the detections of "fused" with "mmdet":'
    )
    return rows, [note, '\n'.join(notes)]


def prediction(
    config: str, size: tuple[int, int], batch: int, file: Path, device: str = 'cpu'
) -> tuple[list[tuple[Row, Call]], Agreement]:
    """Return the timed calls of a detector, named ``'STAGE, PATH'``, and the paths' agreement.

    The stages are timed only for batch size 1. On a GPU, the calls also include other layouts and
    AMP. ``size`` is the height and width of the network input.
    """
    rows: list[tuple[Row, Call]] = []

    def add(stage: str, path: str, call: Call) -> None:
        group = f'{config}, {size[0]}x{size[1]}, batch {batch}'
        against = None if path == 'mmdet' else f'{stage}, mmdet'
        rows.append((Row(group, f'{stage}, {path}', against=against), call))

    def add_whole(path: str, model: Any) -> None:
        call = forms.eager(lambda data: model.test_step(dict(data)), data)
        add('whole, from tensors', path, call)
        if inputs.is_cuda:
            add('whole, from tensors', f'{path} AMP', forms.amp(call, 'cuda'))

    plain, pipeline = _build(config, size, device)
    load = partial(_load, pipeline, file)
    data = {key: value * batch for key, value in load().items()}
    prepared = plain.data_preprocessor(copy.deepcopy(data), False)
    inputs = prepared['inputs']
    _give_scores(plain, inputs)
    paths = {'mmdet': plain, 'fused': fuse_detector(plain)}
    agreement = _agreement(paths.values(), prepared)
    for path, model in paths.items():
        add_whole(path, model)
        if batch == 1:
            from_file = forms.eager(lambda load, model=model: model.test_step(load()), load)
            add('whole, from the file', path, from_file)
            for stage, call in _stages(model, data, inputs, prepared['data_samples']).items():
                add(stage, path, call)
    if inputs.is_cuda:
        contiguous = copy.deepcopy(plain)
        contiguous.backbone.patch_embed[0].memory_format = torch.contiguous_format
        add_whole('mmdet contiguous', contiguous)
        last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
        add_whole('mmdet weights in channels last too', last)
    if batch == 1:
        add('decode and resize', 'mmdet', load)
    return rows, agreement


def _stages(model: Any, data: dict, inputs: Tensor, samples: list) -> dict[str, Call]:
    with torch.inference_mode():
        features = model.backbone(inputs)
        levels = model.neck(features)
        maps = model.bbox_head(levels)
    metas = [sample.metainfo for sample in samples]
    boxes = partial(model.bbox_head.predict_by_feat, batch_img_metas=metas, rescale=True)
    return {
        'normalise and pad': forms.eager(lambda data: model.data_preprocessor(dict(data)), data),
        'backbone': forms.eager(model.backbone, inputs),
        'neck': forms.eager(model.neck, features),
        'head': forms.eager(model.bbox_head, levels),
        'boxes and NMS': forms.eager(lambda maps: boxes(*maps), maps),
    }


def _agreement(models: Any, prepared: dict[str, Any]) -> Agreement:
    found = []
    with torch.inference_mode():
        for model in models:
            samples = copy.deepcopy(prepared['data_samples'])
            found.append(model.predict(prepared['inputs'], samples, rescale=False))
    cfg = model.bbox_head.test_cfg
    pairs = [
        (first.pred_instances.cpu(), second.pred_instances.cpu())
        for first, second in zip(*found, strict=True)
    ]
    return compare_detections(pairs, cfg.score_thr, cfg.max_per_img)


def _build(config: str, size: tuple[int, int], device: str) -> tuple[Any, Any]:
    from mmcv.transforms import Compose
    from mmdet.utils import get_test_pipeline_cfg

    cfg = networks.read_untrained(config)
    plain = networks.build_detector(cfg)
    networks.with_statistics(plain).to(device)
    steps = without_annotations(get_test_pipeline_cfg(cfg))
    for step in steps:
        if step['type'] == 'Resize':
            # exactly this size, without padding
            step.update(scale=(size[1], size[0]), keep_ratio=False)
    return plain, Compose([dict(step) for step in steps])


def _give_scores(detector: Any, inputs: Tensor) -> None:
    """Scale the last classification layer until about 1000 scores per image pass the threshold."""
    head = detector.bbox_head
    threshold = torch.tensor(head.test_cfg.score_thr).logit()
    with torch.inference_mode():
        logits = head(detector.extract_feat(inputs[:1]))[0]
        values = torch.cat([x.flatten() for x in logits]) - head.retina_cls.bias.mean()
        wanted = float(threshold - head.retina_cls.bias.mean())
        factor = wanted / float(values.topk(PASSING).values[-1])
    head.retina_cls.weight.data *= factor


def _load(pipeline: Any, file: Path) -> dict[str, list]:
    data = pipeline({'img_path': str(file), 'img_id': 0})
    return {'inputs': [data['inputs']], 'data_samples': [data['data_samples']]}


@contextmanager
def photo(size: tuple[int, int] = PHOTO) -> Iterator[Path]:
    """Write a synthetic JPEG file of ``(width, height)`` that is as smooth as a photograph."""
    rng = np.random.default_rng(0)
    width, height = size
    image: Any = np.zeros((height, width, 3), np.float32)
    for side in (8, 32, 120):
        noise = rng.normal(size=(side, side, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 240 / side**0.5
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'photo.jpg'
        cv2.imwrite(str(file), (128 + image).clip(0, 255).astype(np.uint8))
        yield file
