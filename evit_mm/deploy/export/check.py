"""Comparison of an exported file's detections or scores with those of PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import nn

from ...data.pipeline import PredictionPipeline
from ...errors import DataError
from ...utils.text import counted

SCORE_TOLERANCE = 1e-3
SAME_BOX, SAME_MASK = 0.99, 0.9  # IoU; a small mask has few pixels
TIE = 0.1  # share of the best score by which the score of an equally good class may be lower


@dataclass(frozen=True)
class Agreement:
    """The agreement of two sets of detections on the same images.

    Attributes:
        images: Number of images.
        detections: Number of detections in the first set.
        unmatched: Number of detections that only one set contains. Detections near the lowest
            reported score do not count.
        score_error: Largest score difference of two matched detections.
        iou: Smallest IoU of two matched boxes.
        mask_iou: Smallest IoU of two matched masks, or 1 without masks.
    """

    images: int
    detections: int
    unmatched: int
    score_error: float
    iou: float
    mask_iou: float = 1.0

    def within(self, score_error: float = SCORE_TOLERANCE, share: float = 1 / 200) -> bool:
        """Return whether both sets agree, except for a share of unmatched detections."""
        return (
            self.unmatched <= self.detections * share
            and self.score_error <= score_error
            and self.mask_iou >= SAME_MASK
        )

    def __str__(self) -> str:
        return (
            f'{counted(self.images, "image")}, {counted(self.detections, "detection")}, '
            f'{self.unmatched} found by only one side; largest score difference '
            f'{self.score_error:.1e}, smallest IoU {self.iou:.4f}'
            + (f' (masks: {self.mask_iou:.4f})' if self.mask_iou < 1 else '')
        )


@dataclass(frozen=True)
class ScoreAgreement:
    """The agreement of two classifiers on the same images.

    Attributes:
        images: Number of images.
        others: Number of images for which the best class of the second classifier is clearly
            worse than that of the first. The scores of many classes can all be below the limit, so
            they say little alone.
        score_error: Largest difference of two scores of a class.
    """

    images: int
    others: int
    score_error: float

    def within(self, score_error: float = SCORE_TOLERANCE, share: float = 1 / 200) -> bool:
        """Return whether the scores agree, and the classes of all but a share of the images."""
        return self.others <= self.images * share and self.score_error <= score_error

    def __str__(self) -> str:
        return (
            f'{counted(self.images, "image")}, {self.others} with another class; largest score '
            f'difference {self.score_error:.1e}'
        )


def compare_scores(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> ScoreAgreement:
    """Compare the scores ``(K,)`` of two classifiers image by image."""
    errors, others = [], 0
    for first, second in pairs:
        errors.append(np.abs(first - second).max())
        others += bool(first[second.argmax()] < first.max() * (1 - TIE))
    return ScoreAgreement(len(errors), others, float(np.max(errors)))  # NaN if one is NaN


def compare_detections(
    pairs: Iterable[tuple[InstanceData, InstanceData]],
    score_thr: float,
    most: int,
    tolerance: float = SCORE_TOLERANCE,
    same_box: float = SAME_BOX,
) -> Agreement:
    """Match two sets of detections; a match has the same class and an IoU of at least ``same_box``.

    Both sets contain detections with a score of at least ``score_thr``, and at most ``most`` per
    image. A detection whose score is within ``tolerance`` of the lowest reported score may be
    missing in the other set.
    """
    images = detections = unmatched = 0
    score_error, iou, mask_iou = 0.0, 1.0, 1.0
    for first, second in pairs:
        overlaps = _overlaps(first, second)
        left = second.scores.numpy().copy()  # 0 for a matched detection
        images += 1
        detections += len(first)
        # rounding can drop a detection at the threshold or at the end of a full list
        lowest = [float(x.scores.min()) for x in (first, second) if 0 < most <= len(x)]
        floor = max([score_thr, *lowest]) + tolerance
        for row, score in enumerate(first.scores.tolist()):
            best = int(overlaps[row].argmax()) if len(second) else -1
            if best < 0 or not overlaps[row, best] >= same_box:  # NaN is not a match
                unmatched += score > floor
                continue
            score_error = max(score_error, abs(score - float(second.scores[best])))
            iou = min(iou, float(overlaps[row, best]))
            if 'masks' in first:
                mask_iou = min(mask_iou, _mask_iou(first.masks[row], second.masks[best]))
            overlaps[:, best], left[best] = -1, 0
        unmatched += int((left > floor).sum())
    return Agreement(images, detections, unmatched, score_error, iou, mask_iou)


def network_inputs(
    cfg: Any, detector: nn.Module, files: Iterable[Path]
) -> Iterator[tuple[torch.Tensor, Any]]:
    """Yield the preprocessed images ``(1, C, H, W)`` and their data samples.

    Raises:
        DataError: A file is not an image, or is too thin for the pipeline.
    """
    preprocessor: Any = detector.data_preprocessor
    pipeline = PredictionPipeline(cfg)
    for file in files:
        try:
            data = pipeline(file)
        except DataError as error:
            raise DataError(f"'{file}': {error}; replace or remove it") from None
        data['data_samples'].set_metainfo({'img_path': str(file)})  # the config can leave it out
        batch = dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        batch = preprocessor(batch, False)
        yield batch['inputs'], batch['data_samples'][0]


def _overlaps(first: InstanceData, second: InstanceData) -> np.ndarray:
    """Return the IoU of each pair, or -1 if the classes differ."""
    from torchvision.ops import box_iou

    same = first.labels[:, None] == second.labels[None]
    return torch.where(same, box_iou(first.bboxes, second.bboxes), -1.0).numpy()


def _mask_iou(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the IoU of two masks ``(H, W)``, or 1 if both are empty."""
    first, second = first > 0.5, second > 0.5  # they can be probabilities
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0
