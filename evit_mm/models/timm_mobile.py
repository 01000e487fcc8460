"""timm's mobile networks as backbones: MobileNetV2 and V3, EfficientNet, MixNet, Single-Path NAS.

Two wrappers exist, but neither fits the comparison. timm's ``features_only`` returns the last map
at each stride. For MobileNetV3 this map is the 960-channel convolution of the classifier.
mmpretrain's ``TIMMBackbone`` has neither ``norm_eval`` nor ``frozen_stages``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from .backbone import Backbone, check_out_indices

PROBE_SIZE = 64  # size of the image that is used to determine channels and strides


@MODELS.register_module()
class TIMMMobileNet(Backbone):
    """Backbone from a timm network that consists of ``conv_stem``, ``bn1`` and ``blocks``.

    Args:
        model_name: Name of the network in timm, for example ``'mobilenetv2_100'``.
        out_indices: Entries of ``blocks`` to return, in increasing order. Later entries are not
            built.
        frozen_stages: -1 freezes nothing, 0 freezes the stem, k also freezes the first k entries
            of ``blocks``.
        norm_eval: Keep every BatchNorm in eval mode during training.
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
        ValueError: timm does not have the network, the network consists of other parts, or an
            argument is out of range.

    Example:
        >>> import torch
        >>> from evit_mm.models import TIMMMobileNet
        >>> backbone = TIMMMobileNet('mobilenetv2_100', out_indices=(2, 4, 6)).eval()
        >>> [tuple(out.shape) for out in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 32, 8, 12), (1, 96, 4, 6), (1, 320, 2, 3)]
    """

    unused = ('conv_head', 'bn2', 'classifier')

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int],
        frozen_stages: int = -1,
        norm_eval: bool = False,
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
        network = timm.create_model(model_name)
        if not all(hasattr(network, name) for name in ('conv_stem', 'bn1', 'blocks')):
            raise ValueError(
                f"model_name: '{model_name}' does not consist of conv_stem, bn1 and blocks; "
                "use mmpretrain's TIMMBackbone instead"
            )
        self.model_name = model_name
        depth = len(network.blocks)
        self.out_indices = check_out_indices(out_indices, range(depth))
        num_stages = self.out_indices[-1] + 1
        self.conv_stem, self.bn1 = network.conv_stem, network.bn1
        self.blocks = network.blocks[:num_stages]
        self.unused += tuple(f'blocks.{i}' for i in range(num_stages, depth))
        self.eval()
        with torch.no_grad():  # timm's feature_info has one entry per stride, not per block
            maps = self(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
        self.train()
        self.out_channels = tuple(x.shape[1] for x in maps)
        self.strides = tuple(PROBE_SIZE // x.shape[2] for x in maps)
        self.freeze(frozen_stages, norm_eval)

    def parts(self) -> list[list[nn.Module]]:
        """Return the modules of the stem, then each entry of ``blocks``."""
        return [[self.conv_stem, self.bn1], *([block] for block in self.blocks)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: RGB images ``(B, 3, H, W)``, normalised with the ImageNet mean and standard
                deviation.

        Returns:
            One map ``(B, C, ceil(H / s), ceil(W / s))`` for each stride s in ``strides``.
        """
        x = self.bn1(self.conv_stem(self.to_layout(x)))  # timm's bn1 includes the activation
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.out_indices:
                outputs.append(x)
        return tuple(outputs)
