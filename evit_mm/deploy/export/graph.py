"""A detector with NMS as one module of tensors, for export.

Shapes: batch B, padded image H x W, candidates K, detections N, anchors of all levels A.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError


class DetectorGraph(nn.Module):
    """The whole detector as a module that maps tensors to tensors, for export.

    Args:
        detector: A single-stage detector in eval mode, with an anchor head that
            :func:`evit_mm.deploy.sparse_prediction.can_predict_sparsely` accepts.
        with_nms: End with NMS. Otherwise, return all boxes and scores, for a runtime that has its
            own NMS.
        half: Compute in float16. The input, the scores and the boxes stay float32.

    Raises:
        ConfigError: The head, the box coder, or an option of ``test_cfg`` is not supported.
    """

    def __init__(self, detector: nn.Module, with_nms: bool = True, half: bool = False) -> None:
        from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

        from ..sparse_prediction import can_predict_sparsely

        super().__init__()
        head = getattr(detector, 'bbox_head', None)
        if head is None or not can_predict_sparsely(head) or hasattr(detector, 'rpn_head'):
            name = type(detector).__name__ + (f' with {type(head).__name__}' if head else '')
            raise ConfigError(
                f'{name} cannot be exported; use a single-stage detector with an anchor head and '
                'sigmoid scores, for example RetinaNet'
            )
        if type(head.bbox_coder) is not DeltaXYWHBBoxCoder or head.bbox_coder.use_box_type:
            raise ConfigError(
                f'bbox_coder {type(head.bbox_coder).__name__} cannot be exported; use '
                'DeltaXYWHBBoxCoder without use_box_type'
            )
        if with_nms:
            _check_test_cfg(head.test_cfg)
        self.detector = copy.deepcopy(detector).half() if half else detector
        self.with_nms = with_nms
        self.half_precision = half
        self.classes = head.cls_out_channels
        self.strides = head.prior_generator.strides  # (x, y) of each level
        for level, anchors in enumerate(head.prior_generator.base_anchors):
            self.register_buffer(f'anchors{level}', anchors.float())

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            image: Normalised and padded images ``(B, 3, H, W)``, float32. H and W are multiples of
                32.
            size: Height and width of each image without padding, ``(B, 2)``, float32.

        Returns:
            ``boxes (B, N, 4)`` as x1, y1, x2, y2 in pixels of ``image``, ``scores (B, N)`` in
            descending order, and ``labels (B, N)``. N is ``max_per_img``; unused rows have score 0,
            label -1 and an empty box. Without NMS, ``boxes (B, A, 4)`` and
            ``scores (B, A, classes)``.
        """
        x = image.half() if self.half_precision else image
        maps = self.detector.bbox_head(self.detector.extract_feat(x))
        levels = [
            (_rows(logits, self.classes).float(), _rows(deltas, 4).float(), logits.shape[3])
            for logits, deltas in zip(*maps, strict=True)
        ]
        return self._detections(levels, size) if self.with_nms else self._all(levels, size)

    def _all(self, levels: list[tuple], size: Tensor) -> tuple[Tensor, Tensor]:
        boxes = []
        for level, (_, deltas, width) in enumerate(levels):
            every = torch.arange(deltas.shape[1], device=deltas.device)
            boxes.append(self._decode(every.expand(len(deltas), -1), deltas, level, width, size))
        return torch.cat(boxes, 1), torch.cat([scores.sigmoid() for scores, _, _ in levels], 1)

    def _detections(self, levels: list[tuple], size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cfg = self.detector.bbox_head.test_cfg
        found = []
        for level, (logits, deltas, width) in enumerate(levels):
            most = torch.sym_min(cfg.nms_pre, logits.shape[1] * self.classes)
            best, places = logits.flatten(1).topk(most)  # (B, K) of this level
            priors = places // self.classes
            deltas = deltas.gather(1, priors[..., None].expand(-1, -1, 4))
            boxes = self._decode(priors, deltas, level, width, size)
            found.append((best.sigmoid(), places % self.classes, boxes))
        scores, labels, boxes = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        keep = scores > cfg.get('score_thr', 0)
        if cfg.get('min_bbox_size', -1) == 0:  # as in mmdet, a negative value disables the filter
            keep = keep & (boxes[..., 2:] > boxes[..., :2]).all(2)
        scores = scores * keep
        # like mmcv's batched_nms, offset the boxes of each class so that classes do not overlap
        apart = boxes + (labels * (boxes.amax((1, 2)) + 1)[:, None])[..., None]
        kept = nms_mask(apart, scores, cfg.nms.iou_threshold, cfg.max_per_img)
        # pad, because a small image can have fewer than max_per_img candidates
        scores = nn.functional.pad(scores * kept, (0, cfg.max_per_img))
        labels = nn.functional.pad(labels, (0, cfg.max_per_img))
        boxes = nn.functional.pad(boxes, (0, 0, 0, cfg.max_per_img))
        scores, order = scores.topk(cfg.max_per_img)
        labels = torch.where(scores > 0, labels.gather(1, order), -1)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        return boxes * (scores > 0)[..., None], scores, labels

    def _decode(
        self, priors: Tensor, deltas: Tensor, level: int, width: int, size: Tensor
    ) -> Tensor:
        """Return the boxes ``(B, K, 4)`` of the anchors with the indices ``(B, K)``."""
        base = getattr(self, f'anchors{level}')
        place = priors // len(base)
        row = place // width
        across, down = self.strides[level]
        corner = torch.stack(((place - row * width) * across, row * down), -1)
        anchors = base[priors % len(base)] + corner.repeat(1, 1, 2)
        coder = self.detector.bbox_head.bbox_coder
        boxes = coder.decode(anchors.flatten(0, 1), deltas.flatten(0, 1)).view_as(deltas)
        if not coder.clip_border:
            return boxes
        return boxes.clamp_min(0).minimum(size.flip(1).repeat(1, 2)[:, None])


def _nms_mask(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Return 1 for the boxes ``(B, K, 4)`` that NMS keeps and 0 for the others: ``(B, K)``.

    Boxes with score 0 are ignored. At most ``most`` boxes per image are kept.
    """
    from torchvision.ops import nms

    mask = torch.zeros_like(scores)
    for row, (image, score) in enumerate(zip(boxes, scores, strict=True)):
        there = score.nonzero().squeeze(1)
        mask[row, there[nms(image[there], score[there], iou_threshold)[:most]]] = 1
    return mask


nms_mask = _nms_mask
if hasattr(torch.library, 'custom_op'):  # from PyTorch 2.4 on; export needs a newer version
    nms_mask = torch.library.custom_op('evit_mm::nms_mask', mutates_args=())(_nms_mask)

    @nms_mask.register_fake
    def _(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:  # noqa: ARG001
        return torch.empty_like(scores)


def _check_test_cfg(cfg: Any) -> None:
    """Check that the graph supports all options of ``test_cfg``."""
    nms = dict(cfg.get('nms') or {})
    if {*nms, 'type'} != {'type', 'iou_threshold'} or nms.get('type', 'nms') != 'nms':
        raise ConfigError(
            f'test_cfg.nms={nms} cannot be exported; use type nms with an iou_threshold and no '
            'other option'
        )
    if cfg.get('min_bbox_size', -1) > 0:  # in pixels of the original image; the graph has no scale
        raise ConfigError(
            f'test_cfg.min_bbox_size={cfg.min_bbox_size} cannot be exported; set it to 0'
        )
    for key in ('nms_pre', 'max_per_img'):
        if not cfg.get(key, -1) > 0:
            raise ConfigError(
                f'test_cfg.{key}={cfg.get(key)} cannot be exported; set it to a number above 0'
            )


def _rows(x: Tensor, columns: int) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, columns))
