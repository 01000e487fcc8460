"""Number of parameters and multiply-adds of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from ..checkpoint.recognition import variant_name
from ..errors import ConfigError
from ..models import EfficientViT, EfficientViTHead, SPOSHead, SPOSNet, TIMMNet
from ..models.spos import RELEASED_CHOICES
from ..runner.build import config_faults
from ..runner.config import load_config
from ..utils.provenance import need_torch
from ..utils.text import markdown_table
from .published_results import PUBLISHED, TIMM_NAMES, Published

PARTS = ('backbone', 'neck', 'head')
CLASSIFIER_WINDOWS = (7, 7, 4)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, including frozen parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(function: Callable[..., Any], *inputs: torch.Tensor) -> int:
    """Count the multiply-adds of one call: convolutions, linear layers, matrix products.

    Papers call this figure "FLOPs". Normalisation, activations and additions are not counted.

    Args:
        function: A module in eval mode, or any function of tensors.
        inputs: Arguments of the function. Use a batch of one for the figure per image.

    Returns:
        Half of the result of PyTorch's FLOP counter, which counts a multiply-add as two.

    Example:
        >>> count_macs(nn.Linear(10, 5), torch.rand(1, 10))
        50
    """
    return _run_counted(function, *inputs)[1]


@dataclass(frozen=True)
class Complexity:
    """Number of parameters and multiply-adds of the model of one config.

    Attributes:
        name: Stem of the config, or name of the backbone.
        classifier: ``(parameters, multiply-adds)`` of the backbone with its ImageNet classifier
            for one image of 224 x 224, or None if the classifier is unknown.
        parts: ``(parameters, multiply-adds)`` of the detector's ``backbone``, ``neck`` and
            ``head`` for one image of ``size``. Empty for a classifier.
        size: ``(width, height)``.
        published: Published figures of the classifier, or None.
    """

    name: str
    classifier: tuple[int, int] | None
    parts: dict[str, tuple[int, int]]
    size: tuple[int, int]
    published: Published | None

    def deviation(self, kind: str) -> float | None:
        """Return the relative deviation from the published ``'params'`` or ``'macs'``."""
        known = getattr(self.published, kind, None)
        if known is None or self.classifier is None:
            return None
        counted = dict(zip(('params', 'macs'), self.classifier, strict=True))
        return counted[kind] / known - 1


def measure(config: str | Path, size: tuple[int, int] = (1333, 800)) -> Complexity:
    """Count the parameters and multiply-adds of a config's model.

    Args:
        config: Config of a detector with ``backbone``, ``neck`` and head, or of a classifier.
        size: ``(width, height)`` of the input image of the detector.

    Raises:
        ConfigError: The config cannot be read, or its model cannot be built or counted.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    cfg.model.backbone.init_cfg = None
    name = Path(config).stem
    with config_faults(cfg):
        model = MODELS.build(cfg.model).eval()
        classifier = build_classifier(model.backbone)
    parts = {}
    if hasattr(model, 'bbox_head') or hasattr(model, 'roi_head'):
        parts = _count_parts(name, model, size)
    counted = None
    if classifier is not None:
        image = torch.empty(1, 3, 224, 224, device='meta')
        counted = count_parameters(classifier), count_macs(classifier.to('meta').eval(), image)
    published = PUBLISHED.get(system_of(model.backbone) or '')
    return Complexity(name, counted, parts, size, published)


def _count_parts(name: str, model: Any, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    try:
        macs = detector_macs(model, size[1], size[0])
    except RuntimeError as error:
        raise ConfigError(
            f'{name} cannot run on an image of {size[0]} x {size[1]} pixels ({error}); choose a '
            '--size of multiples of 32'
        ) from error
    backbone, neck = count_parameters(model.backbone), count_parameters(model.neck)
    params = {
        'backbone': backbone,
        'neck': neck,
        'head': count_parameters(model) - backbone - neck,
    }
    return {part: (params[part], macs[part]) for part in PARTS}


def system_of(backbone: nn.Module) -> str | None:
    """Return a backbone's name in :data:`~evit_mm.compare.published_results.PUBLISHED`, or None."""
    if isinstance(backbone, EfficientViT):
        name = variant_name(backbone.variant)
        return name and f'evit_{name}'
    if isinstance(backbone, SPOSNet) and tuple(backbone.choices) == RELEASED_CHOICES:
        return 'spos'
    if isinstance(backbone, TIMMNet):
        return TIMM_NAMES.get(backbone.model_name)
    return None


def build_classifier(backbone: nn.Module) -> nn.Module | None:
    """Return the ImageNet classifier of a backbone, or None if it is unknown."""
    if isinstance(backbone, EfficientViT):
        # in the last stage, the classifiers have windows of 4 and the detectors windows of 7
        body = EfficientViT(backbone.variant, window_sizes=CLASSIFIER_WINDOWS)
        return nn.Sequential(body, EfficientViTHead(body.out_channels[-1]))
    if isinstance(backbone, SPOSNet):
        return nn.Sequential(SPOSNet(backbone.choices, out_indices=(4,)), SPOSHead())
    if isinstance(backbone, TIMMNet):
        import timm

        return timm.create_model(backbone.model_name)
    return None


def detector_macs(model: nn.Module, height: int, width: int) -> dict[str, int]:
    """Return the multiply-adds of the parts of a detector for one image.

    The count runs on PyTorch's meta device, without computing the outputs. For a two-stage head, it
    assumes mmdet's usual limits: 1000 proposals for the box head, 100 detections for the mask head.
    """
    parts: Any = copy.deepcopy(model).to('meta').eval()
    image = torch.empty(1, 3, height, width, device='meta')
    features, backbone = _run_counted(parts.backbone, image)
    levels, neck = _run_counted(parts.neck, features)
    if hasattr(parts, 'bbox_head'):
        head = count_macs(parts.bbox_head, levels)
    else:
        head = count_macs(parts.rpn_head, levels) + _roi_macs(parts.roi_head)
    return {'backbone': backbone, 'neck': neck, 'head': head}


def _run_counted(function: Callable[..., Any], *inputs: Any) -> tuple[Any, int]:
    need_torch('2.1', 'Counting multiply-adds')
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = function(*inputs)
    return output, counter.get_total_flops() // 2


def _roi_macs(roi_head: nn.Module) -> int:
    macs = 0
    for part, number in (('bbox', 1000), ('mask', 100)):
        head = getattr(roi_head, f'{part}_head', None)
        if head is not None:
            extractor = getattr(roi_head, f'{part}_roi_extractor')
            side = extractor.roi_layers[0].output_size
            regions = torch.empty(number, extractor.out_channels, *side, device='meta')
            macs += count_macs(head, regions)
    return macs


# heading, field of the record, unit, format
COLUMNS = (
    ('params M (published)', 'params_published', 1e6, 'g'),
    ('params M', 'params', 1e6, '.3f'),
    ('deviation', 'params_deviation', 1, '+.1%'),
    ('FLOPs M (published)', 'macs_published', 1e6, 'g'),
    ('FLOPs M', 'macs', 1e6, '.1f'),
    ('deviation', 'macs_deviation', 1, '+.1%'),
    *((f'{part} G', f'{part}_macs', 1e9, '.2f') for part in PARTS),
    ('detector params M', 'detector_params', 1e6, '.2f'),
)


def as_markdown(rows: Sequence[Complexity]) -> str:
    """Return a Markdown table of published and counted figures."""
    cells = [
        [
            record['config'],
            *(
                '-' if record[field] is None else f'{record[field] / unit:{form}}'
                for _, field, unit, form in COLUMNS
            ),
        ]
        for record in as_records(rows)
    ]
    width, height = rows[0].size
    return '\n'.join(
        [
            *markdown_table(['config', *(column[0] for column in COLUMNS)], cells),
            '',
            'The last four columns are for the detector and one image of '
            f'{width} x {height}. The other columns are for the ImageNet classifier at 224 x 224. '
            'FLOPs are multiply-adds of convolutions, linear layers and matrix products, as in the '
            'papers.',
        ]
    )


def as_records(rows: Sequence[Complexity]) -> list[dict[str, Any]]:
    """Return one flat dictionary of numbers per row, for JSON and CSV."""
    records = []
    for row in rows:
        params, macs = row.classifier or (None, None)
        record: dict[str, Any] = {
            'config': row.name,
            'params_published': getattr(row.published, 'params', None),
            'params': params,
            'params_deviation': row.deviation('params'),
            'macs_published': getattr(row.published, 'macs', None),
            'macs': macs,
            'macs_deviation': row.deviation('macs'),
            'width': row.size[0],
            'height': row.size[1],
        }
        for part in PARTS:
            params, macs = row.parts.get(part, (None, None))
            record |= {f'{part}_params': params, f'{part}_macs': macs}
        total = sum(params for params, _ in row.parts.values())
        records.append({**record, 'detector_params': total or None})
    return records
