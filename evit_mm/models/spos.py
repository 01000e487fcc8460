"""The network found by Single Path One-Shot NAS (Guo et al., arXiv 1904.00420).

The network is similar to ShuffleNetV2, but each block has one of four types. The submodules have
the names of the checkpoint that the authors (megvii) released. The input is BGR pixels from 0 to
255 without normalisation. Configure this in the data preprocessor.

Shapes: batch B, channels C, input size H x W, feature map size h x w. At stride s, h = ceil(H / s)
and w = ceil(W / s).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from .backbone import Backbone, check_out_indices
from .layers import mean_pool

DEPTHS = (4, 4, 8, 4)
STAGE_CHANNELS = (64, 160, 320, 640)
STEM_CHANNELS = 16
LAST_CHANNELS = 1024
# choices 0, 1, 2: shuffle block with depthwise kernel 3, 5, 7; choice 3: Xception block
KERNEL_SIZES = (3, 5, 7, 3)
XCEPTION = 3
RELEASED_CHOICES = (2, 1, 0, 1, 2, 0, 2, 0, 2, 0, 2, 3, 0, 0, 0, 0, 3, 2, 3, 3)


def split_even_odd(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split the even channels from the odd channels: ``(B, C, h, w) -> 2 x (B, C / 2, h, w)``.

    This split replaces the channel shuffle of ShuffleNetV2. Each half contains channels of both
    branches of the previous block.
    """
    return x[:, 0::2], x[:, 1::2]


def _pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _depthwise(channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    padding = kernel_size // 2
    conv = nn.Conv2d(
        channels, channels, kernel_size, stride, padding=padding, groups=channels, bias=False
    )
    return [conv, nn.BatchNorm2d(channels)]


class SPOSBlock(nn.Module):
    """One choice block: ``(B, C, h, w) -> (B, C', h / stride, w / stride)``.

    At stride 1, the even channels are not changed, and the odd channels go through the main branch.
    At stride 2, all channels go through the main branch and through a projection. The projection
    keeps the number of channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, choice: int) -> None:
        super().__init__()
        kernel_size = KERNEL_SIZES[choice]
        inputs = in_channels // 2 if stride == 1 else in_channels
        middle = out_channels // 2
        outputs = out_channels - inputs
        if choice == XCEPTION:
            layers = [
                *_depthwise(inputs, kernel_size, stride),
                *_pointwise(inputs, middle),
                *_depthwise(middle, kernel_size),
                *_pointwise(middle, middle),
                *_depthwise(middle, kernel_size),
                *_pointwise(middle, outputs),
            ]
        else:
            layers = [
                *_pointwise(inputs, middle),
                *_depthwise(middle, kernel_size, stride),
                *_pointwise(middle, outputs),
            ]
        self.branch_main = nn.Sequential(*layers)
        self.branch_proj = None
        if stride == 2:
            projection = [*_depthwise(inputs, kernel_size, stride), *_pointwise(inputs, inputs)]
            self.branch_proj = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the unchanged or projected channels with the output of the main branch."""
        if self.branch_proj is None:
            passing, x = split_even_odd(x)
        else:
            passing = self.branch_proj(x)
        return torch.cat((passing, self.branch_main(x)), dim=1)


@MODELS.register_module()
class SPOSNet(Backbone):
    """SPOS backbone with feature maps at strides 4, 8, 16 and 32.

    Args:
        choices: Type of each of the 20 blocks: 0, 1 and 2 for kernel 3, 5 and 7, and 3 for an
            Xception block. The default is the released network.
        out_indices: Stages to return, in increasing order: 0 (stride 4) to 3 (stride 32), and 4
            for the 1024-channel map before the classifier. Later stages are not built.
        frozen_stages: -1 freezes nothing, 0 freezes the stem, k also freezes the first k stages.
        norm_eval: Keep every BatchNorm in eval mode during training.
        channels_last: Compute in channels-last instead of contiguous memory format, which is
            faster. Results and checkpoints are the same.
        init_cfg: Initialisation config of OpenMMLab. ``dict(type='Pretrained', checkpoint=FILE)``
            loads the released checkpoint without conversion. None keeps torch's initial weights,
            because mmengine's Kaiming initialisation counts the fan of a depthwise kernel over all
            channels.

    Attributes:
        choices: Type of each block.
        out_channels: Channels of each output.
        strides: Stride of each output.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import torch
        >>> from evit_mm.models import SPOSNet
        >>> backbone = SPOSNet().eval()
        >>> [tuple(out.shape) for out in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 160, 8, 12), (1, 320, 4, 6), (1, 640, 2, 3)]
        >>> backbone.out_channels, backbone.strides
        ((160, 320, 640), (8, 16, 32))
    """

    unused = ('conv_last', 'classifier')

    def __init__(
        self,
        choices: Sequence[int] = RELEASED_CHOICES,
        out_indices: Sequence[int] = (1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        channels_last: bool = True,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(channels_last, init_cfg)
        known = range(len(KERNEL_SIZES))
        is_whole = isinstance(choices, Sequence) and len(choices) == sum(DEPTHS)
        if not is_whole or not all(isinstance(c, int) and c in known for c in choices):
            raise ValueError(f'choices must be {sum(DEPTHS)} integers from 0 to 3, got {choices!r}')
        self.choices = tuple(choices)
        self.out_indices = check_out_indices(out_indices, range(len(DEPTHS) + 1))
        self.num_stages = min(self.out_indices[-1] + 1, len(DEPTHS))
        widths = (*STAGE_CHANNELS, LAST_CHANNELS)
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.strides = tuple(min(4 << i, 32) for i in self.out_indices)

        stem = nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, padding=1, bias=False)
        self.first_conv = nn.Sequential(stem, nn.BatchNorm2d(STEM_CHANNELS), nn.ReLU())
        blocks: list[SPOSBlock] = []
        channels = STEM_CHANNELS
        for stage in range(self.num_stages):
            for place in range(DEPTHS[stage]):
                stride = 2 if place == 0 else 1
                choice = choices[len(blocks)]
                blocks.append(SPOSBlock(channels, STAGE_CHANNELS[stage], stride, choice))
                channels = STAGE_CHANNELS[stage]
        self.features = nn.Sequential(*blocks)
        self.unused += tuple(f'features.{i}' for i in range(len(blocks), sum(DEPTHS)))
        if len(DEPTHS) in self.out_indices:
            self.conv_last = nn.Sequential(*_pointwise(channels, LAST_CHANNELS))
        self.freeze(frozen_stages, norm_eval)

    def parts(self) -> list[list[nn.Module]]:
        """Return the modules of the stem, then the blocks of each stage that is built."""
        stages, blocks = [], list(self.features)
        for depth in DEPTHS[: self.num_stages]:
            stages.append(blocks[:depth])
            blocks = blocks[depth:]
        return [[self.first_conv], *stages]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: BGR images ``(B, 3, H, W)`` with values from 0 to 255.

        Returns:
            One map ``(B, C, ceil(H / s), ceil(W / s))`` for each stride s in ``strides``.
        """
        x = self.first_conv(self.to_layout(x))
        outputs = []
        for index, stage in enumerate(self.parts()[1:]):
            for block in stage:
                x = block(x)
            if index in self.out_indices:
                outputs.append(x)
        if len(DEPTHS) in self.out_indices:
            outputs.append(self.conv_last(x))
        return tuple(outputs)


@MODELS.register_module()
class SPOSHead(BaseModule):
    """Classification head of SPOS: global average pooling and a linear layer without bias.

    Args:
        num_classes: Number of classes.
        init_cfg: Initialisation config of OpenMMLab.
    """

    def __init__(self, num_classes: int = 1000, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.classifier = nn.Sequential(nn.Linear(LAST_CHANNELS, num_classes, bias=False))

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Return the logits ``(B, num_classes)`` for the outputs of ``SPOSNet``.

        The last output must be the 1024-channel map (``out_indices=(..., 4)``).
        """
        return self.classifier(mean_pool(feats[-1]))
