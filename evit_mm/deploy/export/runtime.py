"""Inference with exported detectors and classifiers.

Shapes: batch B, padded image H x W, detections N, classes K.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

from ...checkpoint.reading import METADATA_KEY
from ...errors import DataError, EvitError
from .files import CLASSIFICATION, DETECTION, preprocessor_of
from .formats import BY_SUFFIX
from .graph import suppress
from .two_stage import paste_masks


class ExportedModel:
    """An opened file of :func:`evit_mm.deploy.export.export`.

    Args:
        file: ``.onnx`` file, ``.xml`` file with its ``.bin``, ``.pt2`` file or ``.pte`` file.
        threads: Number of CPU threads, or None for the default of the runtime.

    Attributes:
        metadata: Metadata from :func:`evit_mm.deploy.export.files.describe` or
            :func:`evit_mm.deploy.export.classification.describe_classifier`.

    Raises:
        EvitError: The file is missing or damaged, was not written by this package, or its runtime
            is not installed.
    """

    def __init__(self, file: str | Path, threads: int | None = None) -> None:
        self.file = Path(file)
        if not self.file.is_file():
            raise EvitError(f"exported file '{file}' does not exist")
        if self.file.suffix not in BY_SUFFIX:
            raise EvitError(
                f"exported file '{file}': the file name must end in {' or '.join(BY_SUFFIX)}"
            )
        try:
            text, self._run = BY_SUFFIX[self.file.suffix].load(self.file, threads)
        except EvitError:
            raise
        except Exception as error:  # the exceptions of the runtimes have no other common base
            reason = _last_line(error)
            raise EvitError(
                f"exported file '{file}' cannot be opened ({reason}); export it again"
            ) from None
        if text is None:
            raise EvitError(
                f"exported file '{file}' has no '{METADATA_KEY}' in its metadata; export the model "
                'with tools/export.py'
            )
        self.metadata = _parse(text, self.file)

    def __call__(self, image: np.ndarray, size: np.ndarray | None = None) -> list[np.ndarray]:
        """Run the file.

        See :class:`evit_mm.deploy.export.DetectorGraph`, or
        :class:`evit_mm.deploy.export.ClassifierGraph`, which has no ``size``, for the inputs and
        the outputs.

        Raises:
            DataError: The file does not accept this batch size or image size.
            EvitError: The runtime cannot run the file.
        """
        given = {'image': image} if size is None else {'image': image, 'size': size}
        inputs = {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in given.items()}
        image = inputs['image']
        if image.ndim == 4:  # the runtime refuses others
            self.check_size(image.shape[2], image.shape[3], len(image))
        try:
            outputs = self._run(inputs)
        except Exception as error:  # the exceptions of the runtimes have no other common base
            raise EvitError(
                f"exported file '{self.file}' cannot run on an image of shape {image.shape} "
                f'({_last_line(error)})'
            ) from None
        return outputs

    def check_size(self, height: int, width: int, batch: int = 1) -> None:
        """Raise a DataError if the file does not accept this size of the padded images."""
        accepted = self.metadata.get('static_size')
        if accepted is None or (batch, width, height) == (1, *accepted):
            return
        given = 'one image' if batch == 1 else f'{batch} images'
        raise DataError(
            f"{given} of {width}x{height} pixels after resizing, but '{self.file}' was exported "
            f'with --static for one image of {accepted[0]}x{accepted[1]}; export it without '
            '--static, or with a test pipeline that pads all images to this size'
        )

    def __deepcopy__(self, memo: dict) -> ExportedModel:
        """Return the same object, for example to a hook that copies the model. It has no state."""
        return self

    def check_task(self, task: str) -> None:
        """Raise an :class:`EvitError` if the file has another task than a caller needs."""
        if self.metadata['task'] != task:
            raise EvitError(
                f"exported file '{self.file}' is for {self.metadata['task']}, but {task} is "
                'needed; give another file, or the config with which it was exported'
            )
        # files of older versions without NMS do not have its options
        options = self.metadata.get('nms')
        if task == DETECTION and options is None and 'labels' not in self.metadata['outputs']:
            raise EvitError(
                f"exported file '{self.file}' has all boxes and no options for NMS; export the "
                'model without --no-nms'
            )

    def detect(self, image: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
        """Run the file, and NMS if the file does not contain it: boxes, scores, labels, masks."""
        self.check_task(DETECTION)
        found = [torch.from_numpy(np.array(x)) for x in self(image, size)]
        options = self.metadata.get('nms')  # files of older versions do not have it
        if 'labels' not in self.metadata['outputs']:
            found = select(found[0], found[1], self.metadata['score_thr'])
        if options is not None:
            found = list(suppress(found[0], found[1], found[2], **options))
        return [x.numpy() for x in found]


@MODELS.register_module()
class ExportedDetector(BaseModel):
    """An exported file as a detector, for mmdet's evaluation.

    Args:
        file: See :class:`ExportedModel`.
        data_preprocessor: Config of the detector's data preprocessor, which normalises and pads.
            Default: see :func:`evit_mm.deploy.export.files.preprocessor_of`.
    """

    def __init__(self, file: str, data_preprocessor: dict | None = None) -> None:
        self.exported = ExportedModel(file)
        self.exported.check_task(DETECTION)
        _check_keys(self.exported.metadata, PREPARATION, self.exported.file)
        divisor = self.exported.metadata['pad_size_divisor']
        preprocessor = data_preprocessor or preprocessor_of(self.exported.metadata)
        super().__init__({**preprocessor, 'pad_size_divisor': divisor})

    def check_size(self, height: int, width: int) -> None:
        """Raise a DataError if the file does not accept an image of this size, after padding."""
        divisor = self.exported.metadata['pad_size_divisor']
        height, width = (math.ceil(side / divisor) * divisor for side in (height, width))
        self.exported.check_size(height, width)

    @property
    def with_mask(self) -> bool:
        """Whether the file finds masks, as in mmdet's detectors."""
        return 'masks' in self.exported.metadata['outputs']

    def forward(self, inputs: torch.Tensor, data_samples: list, mode: str) -> list:  # noqa: ARG002
        """Return the samples with ``pred_instances`` in pixels of the original images."""
        sizes = np.array([sample.img_shape[:2] for sample in data_samples])
        # one image at a time, because a file exported with --static accepts only one
        for row, sample in enumerate(data_samples):
            outputs = self.exported.detect(
                inputs[row : row + 1].cpu().numpy(), sizes[row : row + 1]
            )
            threshold = self.exported.metadata.get('mask_thr', 0.5)
            shape = sample.get('ori_shape')
            sample.pred_instances = to_instances(outputs, sample.scale_factor, shape, threshold)
        return data_samples


@MODELS.register_module()
class ExportedClassifier(BaseModel):
    """An exported file as a classifier, for mmpretrain's evaluation.

    Args:
        file: See :class:`ExportedModel`.
        data_preprocessor: Config of the classifier's data preprocessor, which normalises.
    """

    def __init__(self, file: str, data_preprocessor: dict) -> None:
        self.exported = ExportedModel(file)
        self.exported.check_task(CLASSIFICATION)
        super().__init__({'type': 'ClsDataPreprocessor', **data_preprocessor})

    def forward(self, inputs: torch.Tensor, data_samples: list, mode: str) -> list:  # noqa: ARG002
        """Return the samples with ``pred_score (K,)`` and ``pred_label (1,)``."""
        # one image at a time, because a file exported with --static accepts only one
        for row, sample in enumerate(data_samples):
            (scores,) = self.exported(inputs[row : row + 1].cpu().numpy())
            score = torch.from_numpy(np.array(scores[0]))
            sample.set_pred_score(score).set_pred_label(score.argmax(0, keepdim=True))
        return data_samples


def select(boxes: torch.Tensor, scores: torch.Tensor, score_thr: float) -> list[torch.Tensor]:
    """Return the boxes ``(1, K, 4)``, scores and labels ``(1, K)`` above a threshold.

    Args:
        boxes: ``(1, A, 4)``.
        scores: ``(1, A, classes)``.
        score_thr: Score threshold.
    """
    rows, labels = (scores[0] > score_thr).nonzero(as_tuple=True)
    return [boxes[:, rows], scores[:, rows, labels], labels[None]]


def _parse(text: str, file: Path) -> dict[str, Any]:
    """Return the metadata of a file after a check of their types."""
    try:
        found = {'task': DETECTION, **json.loads(text)}  # files of older versions are detectors
    except (TypeError, ValueError):
        found = {}
    _check_keys(found, ('classes', 'outputs'), file)
    return found


def _check_keys(metadata: dict[str, Any], needed: Sequence[str], file: Path) -> None:
    """Check that some keys are there, and that all values are valid."""
    wrong = [key for key in needed if key not in metadata]
    wrong += [key for key, valid in VALID.items() if key in metadata and not valid(metadata[key])]
    if wrong:
        value = str(metadata.get(wrong[0], 'missing'))[:100]
        raise EvitError(
            f"exported file '{file}': its metadata '{METADATA_KEY}' is damaged "
            f'({wrong[0]}: {value}); export the model again'
        )


def _is_number(value: Any, least: float = -math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= least


def _are_numbers(value: Any, least: float = -math.inf, count: int | None = None) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and count in (None, len(value))
        and all(_is_number(x, least) for x in value)
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_size(value: Any) -> bool:
    return _are_numbers(value, 1, 2) and all(isinstance(x, int) for x in value)


PREPARATION = (
    'mean', 'std', 'channels', 'scale', 'keep_ratio', 'pad_size_divisor', 'pad_value',
    'score_thr',
)  # fmt: skip
VALID: dict[str, Callable[[Any], bool]] = {
    'classes': _are_texts,
    'outputs': _are_texts,
    'mean': _are_numbers,
    'std': lambda value: _are_numbers(value) and all(value),
    'channels': lambda value: value in ('RGB', 'BGR'),
    'scale': lambda value: _is_size(value) or (isinstance(value, int) and value > 0),
    'keep_ratio': lambda value: isinstance(value, bool),
    'pad_to': lambda value: value in (None, 'square') or _is_size(value),
    'pad_pixel': lambda value: _is_number(value) or _are_numbers(value),
    'pad_size_divisor': lambda value: isinstance(value, int) and value > 0,
    'pad_value': _is_number,
    'score_thr': _is_number,
    'mask_thr': _is_number,
    'in_channels': lambda value: isinstance(value, int) and value > 0,
    'static_size': lambda value: value is None or _is_size(value),
    'nms': lambda value: (
        value is None
        or (
            isinstance(value, dict)
            and {*value} == {'iou_threshold', 'max_per_img'}
            and all(_is_number(x, 0) for x in value.values())
        )
    ),
}


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def to_instances(
    outputs: list[np.ndarray],
    scale_factor: tuple[float, float] = (1.0, 1.0),
    shape: tuple[int, ...] | None = None,
    mask_thr: float = 0.5,
) -> InstanceData:
    """Convert the outputs for a batch of one image to detections.

    Args:
        outputs: Boxes, scores, labels and optionally masks.
        scale_factor: Resized width and height, divided by the original width and height.
        shape: Height and width of the original image, into which masks are pasted.
        mask_thr: Threshold of the masks.
    """
    boxes, scores, labels, *masks = (torch.from_numpy(x[0]) for x in outputs)
    there = scores > 0
    scale = torch.tensor([*scale_factor, *scale_factor], dtype=torch.float32)
    found = InstanceData(bboxes=boxes[there] / scale, scores=scores[there], labels=labels[there])
    if masks and shape is not None:
        found.masks = paste_masks(
            masks[0][there].numpy(), found.bboxes, (shape[0], shape[1]), mask_thr
        )
    return found
