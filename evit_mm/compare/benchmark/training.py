"""Speed of training steps with the backbone of this package and with timm's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...models import VARIANTS
from ...utils.provenance import need_torch
from . import machine, networks
from .timing import Call, Row, Setting, time_rows

# config, (height, width), number of images
CASES = (('retinanet_evit_m4_bccd', (256, 320), 8),)
TIMM = "timm's backbone"
LAYOUTS: dict[str, dict[str, bool]] = {
    TIMM: {'timm': True},
    f'{TIMM}, channels last': {'timm': True, 'channels_last': True},
    'ours': {},
    'ours, contiguous': {'contiguous': True},
}
LAST = {'ours, weights in channels last too': {'channels_last': True}}
FORMS: dict[str, dict[str, bool]] = {
    **LAYOUTS,
    **LAST,
    'ours, with_cp': {'with_cp': True},
    'ours, backbone compiled': {'compile': True},
}
# forms on a GPU, which can compute float32 convolutions in TF32
GPU_FORMS: dict[str, dict[str, bool]] = {
    f'{name}, {precision}': {**options, **extra}
    for precision, extra in (('AMP', {'amp': True}), ('float32', {}), ('TF32', {'tf32': True}))
    for name, options in {**LAYOUTS, **LAST}.items()
}


def measure(setting: Setting) -> tuple[list[Row], list[str]]:
    """Time training steps of detectors with both backbones, and of the backbones M0 to M5."""
    rows = []
    for config, size, images in CASES:
        forms = FORMS if torch.device(setting.device).type == 'cpu' else GPU_FORMS
        steps = {
            form: detector_step(config, size, images, options, setting.device)
            for form, options in forms.items()
        }
        rows += _time(f'{config}, {size[0]}x{size[1]}, {images} images', steps, setting.rounds)
    side, images = networks.SIDE, networks.BATCH
    for arch in VARIANTS:
        steps = {
            form: _backbone_step(arch, options, setting.device) for form, options in LAYOUTS.items()
        }
        group = f'{arch.upper()} backbone, {side}x{side}, {images} images'
        rows += _time(group, steps, setting.rounds)
    note = (
        'A step is the forward pass, the loss and the backward pass. The loss of a backbone is the '
        'sum of its outputs. "ours" uses its default layout, channels last. "kept" is the memory '
        "for the backward pass without the weights. The baseline is timm's backbone. AMP and GPU "
        'memory were not measured.'
    )
    return rows, [note]


def timm_row(name: str) -> str:
    """Return the name of the reference row of a form: timm's backbone in the same precision."""
    precision = name.rpartition(', ')[2]
    return f'{TIMM}, {precision}' if name in GPU_FORMS else TIMM


def detector_step(
    config: str, size: tuple[int, int], images: int, options: Mapping[str, bool], device: str
) -> Call:
    """Return a training step of a detector on images of size ``(height, width)``.

    ``options`` is an entry of :data:`FORMS` or :data:`GPU_FORMS`.
    """
    from mmdet.testing import demo_mm_inputs

    arguments = {}
    if options.get('with_cp'):
        arguments['with_cp'] = True
    if options.get('contiguous'):
        arguments['channels_last'] = False
    cfg = networks.read_untrained(config, arguments)
    model = networks.build_detector(cfg)
    if options.get('timm'):
        ours = cfg.model.backbone
        model.backbone = networks.TimmBackbone(
            ours.arch, ours.get('norm_eval', False), ours.get('out_stem', False)
        )
    model.to(device)
    if options.get('channels_last'):
        model.to(memory_format=torch.channels_last)
    model.train()
    if options.get('compile'):
        need_torch('2.1', 'A compiled backbone')
        model.backbone.compile(dynamic=False)
    batch = demo_mm_inputs(images, [[3, *size]] * images, num_classes=model.bbox_head.num_classes)
    data = model.data_preprocessor(batch, True)
    kind = torch.device(device).type
    half = torch.float16 if kind == 'cuda' else torch.bfloat16

    def step() -> None:
        with machine.tf32(options.get('tf32', False)):
            with torch.autocast(kind, half, enabled=options.get('amp', False)):
                losses = model(**data, mode='loss')
            model.parse_losses(losses)[0].backward()
            model.zero_grad()

    return step


def _backbone_step(arch: str, options: Mapping[str, bool], device: str) -> Call:
    torch.manual_seed(0)
    side = networks.SIDE
    if options.get('timm'):
        model = networks.with_statistics(networks.timm_backbone(arch, side))
    else:
        model = networks.backbone(arch, side, channels_last=not options.get('contiguous'))
    images = torch.randn(networks.BATCH, 3, side, side).to(device)
    model.to(device).train()
    if options.get('channels_last'):
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        torch.stack([x.sum() for x in model(images)]).sum().backward()
        model.zero_grad()

    return step


def _time(group: str, steps: Mapping[str, Call], rounds: int) -> list[Row]:
    timed = []
    for name, step in steps.items():
        note = f'{_kept(step) / 2**20:.0f} MiB kept'
        timed.append((Row(group, name, against=timm_row(name), note=note), step))
    return time_rows(timed, max(2, rounds // 2))


def _kept(step: Call) -> int:
    """Return the bytes of the tensors that the forward pass saves for the backward pass."""
    storages: dict[int, tuple[int, Any]] = {}  # references keep each address unique

    def keep(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            storage = x.untyped_storage()
            storages[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        step()
    return sum(size for size, _ in storages.values())
