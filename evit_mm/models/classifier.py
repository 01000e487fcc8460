"""ImageNet classification on top of mmpretrain; needs it, so configs import this by name.

Shapes: B batch, C channels, K classes.
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
from .attention import fit_windows
from .layers import BNLinear, mean_pool
from .pretrained import load_checked, split_init_cfg


@MODELS.register_module()
class EfficientViTClsHead(ClsHead):
    """The authors' classification head in mmpretrain's form, with the authors' names.

    :class:`~evit_mm.models.EfficientViTHead` computes the same without losses and predictions.

    Args:
        in_channels: Channels of the backbone's last output.
        num_classes: Classes K.
        **kwargs: mmpretrain's own of every head: ``loss``, ``topk``, ``cal_acc``, ``init_cfg``.

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
        # taken apart, so that the names in a classifier are `head.bn` and `head.l`, as in the files
        classifier = BNLinear(in_channels, num_classes)
        self.bn, self.l = classifier.bn, classifier.l

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Return what the linear layer takes, ``(B, C)``, from the backbone's outputs."""
        return self.bn(mean_pool(feats[-1]))

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Return the logits ``(B, K)`` from the backbone's outputs."""
        return self.l(self.pre_logits(feats))


@MODELS.register_module()
class EfficientViTClassifier(ImageClassifier):
    """mmpretrain's ImageClassifier that takes the authors' ImageNet files as they are.

    ``init_cfg=dict(type='Pretrained', checkpoint=PATH_OR_URL)`` loads backbone and head, checked
    name by name; attention biases are resized where the windows differ. To keep the backbone alone,
    as for another number of classes, give ``init_cfg`` to the backbone. The head's ``num_classes``
    serves mixup and CutMix too, so it stands in a config once.

    Args:
        backbone: An :class:`~evit_mm.models.EfficientViT`.
        head: An :class:`EfficientViTClsHead`.
        **kwargs: mmpretrain's: ``train_cfg`` (batch augmentations), ``data_preprocessor``,
            ``init_cfg``, ...

    Raises:
        ConfigError: The head does not take as many channels as the backbone puts out.
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
        """Initialise as ``init_cfg`` says; a ``Pretrained`` file must fit as a whole."""
        pretrained, _ = split_init_cfg(self.init_cfg or [])
        if self.is_init or not pretrained:
            super().init_weights()
            return
        # every entry comes from the file, so nothing else needs initialising
        for cfg in pretrained:
            load_checked(self, cfg['checkpoint'], prefix='')
        self._is_init = True

    def translate_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give a file's tensors this classifier's names and window sizes.

        The file has the authors' names (``patch_embed.*``, ``blocks*``, ``head.*``) or this
        class's own, in which all but the head begin with ``backbone.``.
        """
        if not any(key.startswith('backbone.') for key in state):
            state = {k if k.startswith('head.') else f'backbone.{k}': v for k, v in state.items()}
        translated = fit_windows(state, self.state_dict())
        resized = [key for key in state if translated[key].shape != state[key].shape]
        if resized:
            print_log(f'resized {len(resized)} attention biases', logger='current')
        return translated


@HOOKS.register_module()
class ClsVisualizationHook(VisualizationHook):
    """mmpretrain's VisualizationHook with the right colours and one picture per image.

    mmpretrain 1.2 hands BGR pixels to a visualizer that takes RGB, and names pictures after files
    alone, so that ``cat/1.jpg`` and ``dog/1.jpg`` overwrite each other. Arguments as mmpretrain's.
    """

    def _draw_samples(
        self, batch_idx: int, data_batch: dict, data_samples: Sequence[Any], step: int = 0
    ) -> None:
        if not self.enable:
            return
        samples = [sample.new() for sample in data_samples]
        for sample in samples:
            # CLASS_IMAGE.jpg
            sample.set_metainfo({'img_path': '_'.join(Path(sample.img_path).parts[-2:])})
        rgb = [image.flip(0) for image in data_batch['inputs']]
        super()._draw_samples(batch_idx, {**data_batch, 'inputs': rgb}, samples, step)
