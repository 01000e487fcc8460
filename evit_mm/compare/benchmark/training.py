"""Training steps: our backbone, timm's in its place, and what may speed them up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from ...utils.provenance import need_torch

# config, size as (height, width), images
CASES = (('retinanet_evit_m4_bccd', (256, 320), 8),)
LAYOUTS: dict[str, dict[str, bool]] = {
    "timm's backbone": {'timm': True},
    "timm's backbone, channels last": {'timm': True, 'channels_last': True},
    'ours': {},
    'ours, contiguous': {'contiguous': True},
}
FORMS: dict[str, dict[str, bool]] = {
    **LAYOUTS,
    'ours, weights in channels last too': {'channels_last': True},
    'ours, with_cp': {'with_cp': True},
    'ours, backbone compiled': {'compile': True},
}
# the same on a GPU, whose float32 convolutions may be computed in TF32
GPU_FORMS: dict[str, dict[str, bool]] = {
    f'{name}, {precision}': {**options, **extra}
    for precision, extra in (
        ('AMP', {'amp': True}),
        ('float32', {}),
        ('TF32', {'tf32': True}),
    )
    for name, options in {
        **LAYOUTS,
        'ours, weights in channels last too': {'channels_last': True},
    }.items()
}
TIMM = "timm's backbone"
Step = tuple[Callable[[], object], int]


class TimmBackbone(nn.Module):
    """timm's EfficientViT in a detector's place for a backbone.

    Args:
        arch: ``'m0'`` to ``'m5'``.
        norm_eval: Keep BatchNorm in eval mode while training.
        stem: Return the stem's stride-8 map first.
    """

    def __init__(self, arch: str, norm_eval: bool, stem: bool) -> None:
        from .suites import timm_backbone

        super().__init__()
        self.net = timm_backbone(arch, 0)
        self.norm_eval = norm_eval
        self.stem = stem

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the stages' maps."""
        kept = []
        if self.stem:
            hook = self.net.patch_embed_relu3.register_forward_hook(
                lambda module, inputs, output: kept.append(output)  # noqa: ARG005
            )
        outputs = self.net(x)
        if self.stem:
            hook.remove()
        return (*kept, *outputs)

    def train(self, mode: bool = True) -> TimmBackbone:
        """Keep BatchNorm as ``norm_eval`` says."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def timm_row(name: str) -> str:
    """Return the name of the row that a form is held against: timm's in the same precision."""
    precision = name.rpartition(', ')[2]
    return f'{TIMM}, {precision}' if name in GPU_FORMS else TIMM


def steps(
    device: str = 'cpu',
    chosen: Iterable[tuple[str, tuple[int, int], int]] | None = None,
    forms: Mapping[str, Mapping[str, bool]] | None = None,
) -> Iterator[tuple[str, dict[str, Step]]]:
    """Yield groups of steps to time together, with the bytes that each keeps for its backward.

    Args:
        device: Where the detectors are.
        chosen: Config, size as (height, width) and images of each group; default :data:`CASES`.
        forms: Options of each step by its name; default :data:`FORMS`, on a GPU
            :data:`GPU_FORMS`.
    """
    if forms is None:
        forms = FORMS if torch.device(device).type == 'cpu' else GPU_FORMS
    for name, size, images in CASES if chosen is None else chosen:
        runs = {
            label: _step(name, size, images, options, device) for label, options in forms.items()
        }
        yield f'{name}, {size[0]}x{size[1]}, {images} images', runs


def backbone_steps(device: str = 'cpu') -> Iterator[tuple[str, dict[str, Step]]]:
    """Yield the same of M0 to M5 alone, in either layout."""
    from .suites import BATCH, SIDE, VARIANTS

    for arch in VARIANTS:
        runs = {label: _backbone_step(arch, options, device) for label, options in LAYOUTS.items()}
        yield f'{arch.upper()} backbone, {SIDE}x{SIDE}, {BATCH} images', runs


def _backbone_step(arch: str, options: dict[str, bool], device: str) -> Step:
    from .suites import BATCH, SIDE, backbone, timm_backbone, with_statistics

    torch.manual_seed(0)
    if options.get('timm'):
        model = with_statistics(timm_backbone(arch, SIDE))
    else:
        model = backbone(arch, SIDE, channels_last=not options.get('contiguous'))
    images = torch.randn(BATCH, 3, SIDE, SIDE).to(device)
    model.to(device)
    if options.get('channels_last'):
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    model.train()

    def run() -> None:
        torch.stack([x.sum() for x in model(images)]).sum().backward()
        model.zero_grad()

    return run, _kept(run)


def _step(
    name: str, size: tuple[int, int], images: int, options: Mapping[str, bool], device: str
) -> Step:
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs

    from ...runner.config import load_config
    from .suites import config_path

    cfg = load_config(config_path(name))
    init_default_scope('mmdet')
    cfg.model.backbone.init_cfg = None
    if options.get('with_cp'):
        cfg.model.backbone.with_cp = True
    if options.get('contiguous'):
        cfg.model.backbone.channels_last = False
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    if options.get('timm'):
        backbone = cfg.model.backbone
        theirs = TimmBackbone(
            backbone.arch, backbone.get('norm_eval', False), backbone.get('out_stem', False)
        )
        model.backbone = theirs
    model.to(device)
    if options.get('channels_last'):
        model.to(memory_format=torch.channels_last)
    model.train()
    if options.get('compile'):
        need_torch('2.1', 'A compiled backbone')
        model.backbone.compile(dynamic=False)
    classes = model.bbox_head.num_classes
    batch = demo_mm_inputs(images, [[3, *size]] * images, num_classes=classes)
    data = model.data_preprocessor(batch, True)

    kind = torch.device(device).type
    half = torch.float16 if kind == 'cuda' else torch.bfloat16
    allowed = torch.backends.cuda.matmul, torch.backends.cudnn

    def run() -> None:
        before = [flags.allow_tf32 for flags in allowed]
        for flags in allowed:
            flags.allow_tf32 = options.get('tf32', False)
        try:
            with torch.autocast(kind, half, enabled=options.get('amp', False)):
                losses = model(**data, mode='loss')
            model.parse_losses(losses)[0].backward()
            model.zero_grad()
        finally:
            for flags, value in zip(allowed, before, strict=True):
                flags.allow_tf32 = value

    return run, _kept(run)


def _kept(run: Callable[[], object]) -> int:
    """Return the bytes of the tensors that a step's forward pass keeps for the backward."""
    storages: dict[int, tuple[int, Any]] = {}  # kept alive, so that no address is used twice

    def keep(x: Tensor) -> Tensor:
        if not isinstance(x, nn.Parameter):
            storage = x.untyped_storage()
            storages[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run()
    return sum(size for size, _ in storages.values())
