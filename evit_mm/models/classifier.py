"""ImageNet classifier for mmpretrain.

The package does not import this module, because it needs mmpretrain. Configs import it by name.

Shapes: batch B, channels C, classes K.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmpretrain.engine import VisualizationHook
from mmpretrain.models import ImageClassifier
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import HOOKS, MODELS
from torch import Tensor

from ..errors import ConfigError
from ..utils.text import counted
from .attention import fit_windows
from .layers import BNLinear, mean_pool
from .pretrained import load_checked, split_init_cfg


@MODELS.register_module()
class EfficientViTClsHead(ClsHead):
    """The authors' classification head as an mmpretrain head.

    :class:`~evit_mm.models.EfficientViTHead` is the same head without losses and predictions.

    Args:
        in_channels: Channels of the last output of the backbone.
        num_classes: Number of classes K.
        **kwargs: Arguments of mmpretrain's ``ClsHead``: ``loss``, ``topk``, ``cal_acc`` and
            ``init_cfg``.

    Example:
        >>> import torch
        >>> head = EfficientViTClsHead(384, 1000).eval()
        >>> head((torch.rand(2, 384, 4, 4),)).shape
        torch.Size([2, 1000])
    """

    def __init__(self, in_channels: int, num_classes: int = 1000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.in_channels = in_channels
        self.num_classes = num_classes
        # the names in the authors' checkpoints are head.bn and head.l
        classifier = BNLinear(in_channels, num_classes)
        self.bn, self.l = classifier.bn, classifier.l

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Return the input of the linear layer, ``(B, C)``, for the outputs of the backbone."""
        return self.bn(mean_pool(feats[-1]))

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Return the logits ``(B, K)`` for the outputs of the backbone."""
        return self.l(self.pre_logits(feats))


@MODELS.register_module()
class EfficientViTClassifier(ImageClassifier):
    """mmpretrain's ImageClassifier that loads the authors' ImageNet checkpoints.

    ``init_cfg=dict(type='Pretrained', checkpoint=PATH_OR_URL)`` loads the backbone and the head.
    All names must match. Attention biases are resized if the window sizes differ. To load only the
    backbone, for example for another number of classes, set ``init_cfg`` in the backbone. Mixup and
    CutMix use ``num_classes`` of the head.

    Args:
        backbone: Config of an :class:`~evit_mm.models.EfficientViT`.
        head: Config of an :class:`EfficientViTClsHead`.
        **kwargs: Arguments of mmpretrain's ``ImageClassifier``, for example ``train_cfg`` (batch
            augmentations), ``data_preprocessor`` and ``init_cfg``.

    Raises:
        ConfigError: ``head.in_channels`` differs from the output channels of the backbone.
    """

    def __init__(self, backbone: dict, head: dict, **kwargs: Any) -> None:
        super().__init__(backbone, head=head, **kwargs)
        channels = self.backbone.out_channels[-1]
        if self.head.in_channels != channels:
            raise ConfigError(
                f'model.head.in_channels is {self.head.in_channels}, but the backbone outputs '
                f'{channels} channels; set model.head.in_channels={channels}'
            )
        self.data_preprocessor.num_classes = self.head.num_classes

    def init_weights(self) -> None:
        """Initialise the weights from ``init_cfg``. Every ``Pretrained`` entry must fit."""
        pretrained, _ = split_init_cfg(self.init_cfg or [])
        if self.is_init or not pretrained:
            super().init_weights()
            return
        # the checkpoint contains every entry, so nothing else needs initialisation
        for cfg in pretrained:
            load_checked(self, cfg['checkpoint'], prefix='')
        self._is_init = True

    def translate_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors with the names and window sizes of this classifier.

        ``state`` has the authors' names (``patch_embed.*``, ``blocks*``, ``head.*``) or the names
        of this class (``backbone.*``, ``head.*``).
        """
        if not any(key.startswith('backbone.') for key in state):
            state = {k if k.startswith('head.') else f'backbone.{k}': v for k, v in state.items()}
        translated = fit_windows(state, self.state_dict())
        resized = [key for key in state if translated[key].shape != state[key].shape]
        if resized:
            print_log(f'resized {counted(len(resized), "attention bias")}', logger='current')
        return translated


@HOOKS.register_module()
class ClsVisualizationHook(VisualizationHook):
    """mmpretrain's VisualizationHook with correct colours and unique file names.

    mmpretrain 1.2 passes BGR pixels to a visualizer that expects RGB. It also drops the folder from
    the file name, so the pictures of ``cat/1.jpg`` and ``dog/1.jpg`` overwrite each other. It
    takes the same arguments.
    """

    folder = ''  # of the images; without it, the name is that of the last folder and of the file

    def before_val_epoch(self, runner: Any) -> None:
        """Find the folder of the images."""
        self.folder = getattr(runner.val_dataloader.dataset, 'img_prefix', '')

    def before_test_epoch(self, runner: Any) -> None:
        """Find the folder of the images."""
        self.folder = getattr(runner.test_dataloader.dataset, 'img_prefix', '')

    def _draw_samples(
        self, batch_idx: int, data_batch: dict, data_samples: Sequence[Any], step: int = 0
    ) -> None:
        if not self.enable:
            return
        samples = [sample.new() for sample in data_samples]
        for sample in samples:
            path = Path(sample.img_path)
            inside = self.folder and path.is_relative_to(self.folder)
            parts = path.relative_to(self.folder).parts if inside else path.parts[-2:]
            sample.set_metainfo({'img_path': '_'.join(parts)})  # CLASS_SUBFOLDER_IMAGE.jpg
        images = data_batch['inputs']
        if isinstance(images[0], Sequence):
            images = images[0]  # the first view of each image, in test-time augmentation
        rgb = [image.flip(0) for image in images]
        super()._draw_samples(batch_idx, {**data_batch, 'inputs': rgb}, samples, step)
