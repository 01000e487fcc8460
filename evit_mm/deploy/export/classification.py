"""A classifier as one module of tensors, for export, and what a program needs to run it.

Shapes: batch B, channels C, crop H x W, classes K.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...data.pipeline import describe_loading, loading_steps, step_name, without_annotations
from ...errors import ConfigError
from .files import describe_normalisation, preprocessor_config

STEPS = ['ResizeEdge', 'CenterCrop', 'PackInputs']  # after those that load the image


class ClassifierGraph(nn.Module):
    """A classifier as a module that maps tensors to tensors, for export.

    Args:
        classifier: An ``ImageClassifier`` of mmpretrain in eval mode, whose head predicts as
            ``ClsHead`` does.
        image_size: Height and width of all images, or None for any.
        dtype: Type of the network. The input and the scores stay float32.

    Raises:
        ConfigError: The classifier predicts in another way.
    """

    def __init__(
        self,
        classifier: nn.Module,
        image_size: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        _check(classifier)
        self.classifier = classifier
        if dtype != torch.float32:
            self.classifier = copy.deepcopy(classifier).to(dtype)
        self.image_size, self.dtype = image_size, dtype

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Classify images.

        Args:
            image: Normalised images ``(B, C, H, W)``, float32.

        Returns:
            ``scores (B, K)``, float32. The scores of an image add up to 1.
        """
        return (self.classifier(image.to(self.dtype), mode='tensor').float().softmax(1),)


def _check(classifier: Any) -> None:
    """Check that :class:`ClassifierGraph` predicts as the classifier does."""
    from mmpretrain.models import ImageClassifier
    from mmpretrain.models.heads import ClsHead

    head = getattr(classifier, 'head', None)
    predicts = getattr(type(classifier), 'predict', None) is ImageClassifier.predict
    if not predicts or getattr(type(head), 'predict', None) is not ClsHead.predict:
        raise ConfigError(
            f'{type(classifier).__name__} with {type(head).__name__} cannot be exported, because '
            'it does not predict like ImageClassifier with ClsHead; use these or derived classes'
        )


def describe_classifier(cfg: Any, classes: Sequence[str]) -> dict[str, Any]:
    """Return the metadata that a program needs to run the file of a classifier.

    ``classes``, ``reader``, ``mean``, ``std`` and ``channels`` are those of
    :func:`~evit_mm.deploy.export.files.describe`. The other keys are:

    - ``scale``, ``edge``: resize the image so that its ``'short'`` edge has this length; the other
      edge is rounded down
    - ``interpolation``, ``backend``: how mmcv's ``imresize`` does that
    - ``crop_size``: width and height of the centre that is cut out

    Raises:
        ConfigError: These keys cannot describe the preprocessing of the config.
    """
    from mmdet.utils import get_test_pipeline_cfg

    pre = preprocessor_config(cfg)
    whole = without_annotations(get_test_pipeline_cfg(cfg))
    steps = whole[len(loading_steps(whole)) :]
    named = {step_name(step): step for step in steps}
    resize, crop = named.get('ResizeEdge', {}), named.get('CenterCrop', {})
    size = crop.get('crop_size', 0)
    width, height = (size, size) if isinstance(size, int) else size
    fixed = (
        [step_name(step) for step in steps] == STEPS
        and resize.get('edge', 'short') == 'short'
        and resize['scale'] >= max(width, height)  # no image is smaller than the crop
        and not crop.get('auto_pad')
    )
    divisor = pre.get('pad_size_divisor', 1)
    known = pre.get('type', 'ClsDataPreprocessor').split('.')[-1] == 'ClsDataPreprocessor'
    if not (fixed and known) or width % divisor or height % divisor:
        raise ConfigError(
            f"config '{cfg.filename}': an export needs a ClsDataPreprocessor without padding and a "
            f'test pipeline of a step that loads the image, {", ".join(STEPS)}, where ResizeEdge '
            f'has a short edge of at least the crop_size{_others(named)}'
        )
    return {
        'classes': list(classes),
        'reader': describe_loading(cfg),
        **describe_normalisation(pre),
        'channels': 'RGB' if pre.get('to_rgb') else 'BGR',
        'scale': int(resize['scale']),
        'edge': 'short',
        'interpolation': resize.get('interpolation', 'bilinear'),
        'backend': resize.get('backend', 'cv2'),
        'crop_size': [int(width), int(height)],
    }


def _others(named: Mapping[str, Any]) -> str:
    others = [name for name in named if name not in STEPS]
    return f'; remove {", ".join(others)}' if others else ''
