"""timm's networks as backbones: MobileNets, SHViT, RepViT, PVTv2, ResNet and others.

Two other wrappers exist. timm's ``features_only`` has one output per stride, and for MobileNetV3
the last one is the 960-channel convolution of the classifier. mmpretrain's ``TIMMBackbone`` has
neither ``norm_eval`` nor ``frozen_stages``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..utils.provenance import need_torch
from .backbone import Backbone, check_out_indices, recomputed

PROBE_SIZE = (64, 128)  # height and width of the image that shows channels and strides
TOLERANCE = 1e-6  # largest relative difference from timm's features
PYRAMID = 3  # number of outputs by default: the last three strides


# saved configs of earlier trainings have the second name
@MODELS.register_module(name=['TIMMNet', 'TIMMMobileNet'])
class TIMMNet(Backbone):
    """Backbone from a timm network whose forward applies its stem and then one stage after another.

    The stages are the entries of timm's ``blocks`` or ``stages``, or ``layer1`` to ``layer4`` of a
    ResNet. The outputs are compared with timm's own features when the network is built. A network
    whose forward does more, for example add a position embedding or reorder dimensions, is refused.

    Args:
        model_name: Name of the network in timm, for example ``'mobilenetv2_100'``.
        out_indices: Stages to return, in increasing order. Later stages are not built. None stands
            for timm's features at the last three strides.
        frozen_stages: -1 freezes nothing, 0 freezes the stem, k also freezes the first k stages.
        norm_eval: Keep every BatchNorm in eval mode during training.
        with_cp: Recompute each stage in the backward pass to save memory. Gradients and BatchNorm
            statistics do not change. Needs PyTorch 2.1.
        channels_last: Compute in channels-last instead of contiguous memory format, which is
            faster. Results and checkpoints are the same.
        init_cfg: Initialisation config of OpenMMLab.
            ``dict(type='Pretrained', checkpoint='timm://NAME')`` loads timm's weights from the
            Hugging Face hub. A file with these weights works too.

    Attributes:
        model_name: The argument.
        out_channels: Channels of each output.
        strides: Stride of each output.

    Raises:
        ValueError: timm does not have the network, this class cannot compute its features, or an
            argument is out of range.

    Example:
        >>> import torch
        >>> from evit_mm.models import TIMMNet
        >>> backbone = TIMMNet('mobilenetv2_100', out_indices=(2, 4, 6)).eval()
        >>> [tuple(out.shape) for out in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 32, 8, 12), (1, 96, 4, 6), (1, 320, 2, 3)]
        >>> TIMMNet('shvit_s1').strides
        (16, 32, 64)
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        channels_last: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        import timm  # here, because it imports torchvision and huggingface_hub

        super().__init__(channels_last, init_cfg)
        if not timm.is_model(model_name):
            raise ValueError(
                f"model_name: timm {timm.__version__} has no model '{model_name}'; choose a name "
                'from timm.list_models()'
            )
        plain_name, _, tag = model_name.partition('.')
        if tag and model_name not in (tags := timm.list_pretrained(f'{plain_name}.*')):
            known = f'choose from {", ".join(tags)}' if tags else f'use {plain_name}'
            raise ValueError(f"model_name: timm has no weights '{tag}' of {plain_name}; {known}")
        if with_cp:
            need_torch('2.1', 'with_cp=True')
        self.model_name, self.with_cp = model_name, with_cp
        network = timm.create_model(model_name).eval()
        taps = [info['module'] for info in getattr(network, 'feature_info', ())]
        stages = _stage_names(network, taps)
        steps = list(_steps(network, taps))
        maps = _checked_features(network, model_name, steps, taps)

        indices = {index: name for index, name in enumerate(stages) if name in maps}
        if out_indices is None:
            last = {maps[name].shape[2:]: i for i, name in indices.items() if name in taps}
            out_indices = tuple(last.values())[-PYRAMID:]
        self.out_indices = check_out_indices(out_indices, list(indices))
        outputs = [indices[i] for i in self.out_indices]
        self.out_channels = tuple(maps[name].shape[1] for name in outputs)
        self.strides = tuple(PROBE_SIZE[0] // maps[name].shape[2] for name in outputs)

        self._steps = steps[: steps.index(outputs[-1]) + 1]
        self._stages = stages[: self.out_indices[-1] + 1]
        self._outputs = outputs
        self.unused = _keep(network, self._steps)
        for name, child in network.named_children():
            self.add_module(name, child)
        self.train()
        self.freeze(frozen_stages, norm_eval)

    def parts(self) -> list[list[nn.Module]]:
        """Return the modules of the stem, then the modules of each stage that is built."""
        parts: list[list[nn.Module]] = [[]]
        first = self._steps.index(self._stages[0])
        for index, name in enumerate(self._steps):
            # a module between two stages belongs to the later one
            if index == first or (index > first and self._steps[index - 1] in self._stages):
                parts.append([])
            parts[-1].append(self.get_submodule(name))
        return parts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: Images ``(B, 3, H, W)``, normalised with the mean and standard deviation of timm's
                weights. For most networks these are ImageNet's.

        Returns:
            One map ``(B, C, H / s, W / s)`` for each stride s in ``strides``. If s does not divide
            H or W, most networks round up, and some round down.
        """
        x = self.to_layout(x)
        outputs = []
        for name in self._steps:
            module = self.get_submodule(name)
            recompute = self.with_cp and self.training and name in self._stages
            x = recomputed(module, x) if recompute else module(x)
            if name in self._outputs:
                outputs.append(x)
        return tuple(outputs)


def _steps(network: nn.Module, taps: Sequence[str]) -> Iterator[str]:
    """Yield the names of the modules whose outputs follow one another.

    These are the children of the network, and the entries of those that contain timm's features.
    """
    for name, child in network.named_children():
        if name not in taps and any(tap.startswith(f'{name}.') for tap in taps):
            yield from (f'{name}.{entry}' for entry, _ in child.named_children())
        else:
            yield name


def _stage_names(network: nn.Module, taps: Sequence[str]) -> list[str]:
    """Return the names of the stages: all entries of ``blocks`` or ``stages``, or whole children.

    A first feature before ``blocks``, or of a ResNet's stem, does not count.
    """
    containers = Counter(tap.rpartition('.')[0] for tap in taps)
    if not containers:
        return []
    container, _ = containers.most_common(1)[0]
    if not container:
        return list(taps[1:])
    last = [tap for tap in taps if '.' not in tap][-1:]
    names = [name for name in _steps(network, taps) if name.startswith(f'{container}.')]
    return names + [tap for tap in last if tap == taps[-1]]


def _checked_features(
    network: Any, model_name: str, steps: Sequence[str], taps: Sequence[str]
) -> dict[str, Tensor]:
    """Return the output of each step up to the last feature, compared with timm's features."""
    import timm

    def refuse(reason: object) -> ValueError:
        return ValueError(
            f"model_name: '{model_name}' cannot be used as a backbone, because {reason}; use "
            "mmpretrain's TIMMBackbone, or another network"
        )

    if not taps or not hasattr(network, 'forward_intermediates'):
        raise refuse('timm has no feature maps of it')
    extra = [name for name, _ in network.named_parameters(recurse=False)]
    if extra:
        raise refuse(f'its forward uses {", ".join(extra)} outside its stages')
    if not set(taps) <= set(steps):
        raise refuse('its stages do not follow one another')
    # random images, because zeros could hide a difference
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, *PROBE_SIZE, generator=generator)
    maps: dict[str, Tensor] = {}
    with torch.no_grad():
        try:
            expected = network.forward_intermediates(
                image, indices=len(taps), output_fmt='NCHW', intermediates_only=True
            )
            x = image
            for name in steps[: steps.index(taps[-1]) + 1]:
                x = maps[name] = network.get_submodule(name)(x)
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            reason = ' '.join(str(error).split())[:200]
            raise refuse(f'it fails on an image of {PROBE_SIZE} pixels ({reason})') from error
    for tap, theirs in zip(taps, expected, strict=True):
        ours = maps[tap]
        if ours.shape != theirs.shape or _difference(ours, theirs) > TOLERANCE:
            raise refuse(
                f"its stages in order do not give timm {timm.__version__}'s features at '{tap}'"
            )
        height, width = ours.shape[2:]
        if height * PROBE_SIZE[1] != width * PROBE_SIZE[0]:
            raise refuse(f"no stride divides {PROBE_SIZE} pixels into the map at '{tap}'")
    return maps


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))


def _keep(network: nn.Module, steps: Sequence[str]) -> tuple[str, ...]:
    """Delete all modules except for the steps, and return their names."""
    removed = []
    for name, child in list(network.named_children()):
        if name in steps:
            continue
        entries = [f'{name}.{entry}' for entry, _ in child.named_children()]
        if not set(entries) & set(steps):
            entries = [name]
        removed += [entry for entry in entries if entry not in steps]
    for name in removed:
        parent, _, last = name.rpartition('.')
        delattr(network.get_submodule(parent), last)
    return tuple(removed)
