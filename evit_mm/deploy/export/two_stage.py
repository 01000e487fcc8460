"""A two-stage detector as one module of tensors, for export.

Shapes: batch B, padded image H x W, channels C, proposals P per image, candidates K, detections N
per image, RoIs R of all images, mask h x w (28 x 28 in mmdet's configs).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ConfigError
from .graph import as_operator, clip, nms_options, positive, suppress


class TwoStageGraph(nn.Module):
    """Faster R-CNN or Mask R-CNN as a module that maps tensors to tensors, for export.

    Args:
        detector: A two-stage detector in eval mode, with RPNHead, StandardRoIHead,
            SingleRoIExtractor of RoIAlign, a box head that predicts as BBoxHead does, and
            FCNMaskHead or no mask head.
        dtype: Type of the network. The input, the boxes, the scores and the masks stay float32.

    Attributes:
        outputs: Names of the outputs.

    Raises:
        ConfigError: A head, or an option of ``test_cfg``, is not supported.
    """

    def __init__(self, detector: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        _check(detector)
        self.detector: Any = detector
        if dtype != torch.float32:
            self.detector = copy.deepcopy(detector).to(dtype)
        self.dtype = dtype
        masks = ['masks'] if self.detector.roi_head.with_mask else []
        self.outputs = ['boxes', 'scores', 'labels', *masks]

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            image: Normalised and padded images ``(B, 3, H, W)``, float32. H and W are multiples of
                32.
            size: Height and width of each image without padding, ``(B, 2)``, float32.

        Returns:
            ``boxes (B, N, 4)`` as x1, y1, x2, y2 in pixels of ``image``, ``scores (B, N)`` in
            descending order, ``labels (B, N)`` and, if the detector has a mask head, ``masks
            (B, N, h, w)``: the probability that each cell of the box belongs to the object. N is
            ``max_per_img``; unused rows have score 0, label -1, an empty box and a mask of zeros.
        """
        maps = self.detector.extract_feat(image.to(self.dtype))
        proposals, there = self._proposals(maps, size)
        boxes, scores, labels = self._boxes(maps, size, proposals, there)
        if not self.detector.roi_head.with_mask:
            return boxes, scores, labels
        return boxes, scores, labels, self._masks(maps, boxes, labels)

    def _proposals(self, maps: Sequence[Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes ``(B, P, 4)``, and which of them are proposals: ``(B, P)``."""
        head = self.detector.rpn_head
        cfg = head.test_cfg
        logits, deltas = head(maps)
        priors = head.prior_generator.grid_priors(
            [x.shape[2:] for x in logits], dtype=size.dtype, device=size.device
        )
        found = []
        for level, anchors in enumerate(priors):
            raw = _rows(logits[level], head.cls_out_channels).to(size)
            # ONNX Runtime's Sigmoid is never below 1e-8, as most scores of a trained RPN are
            sigmoid = 1 / (1 + (-raw).exp())
            every = sigmoid if head.use_sigmoid_cls else raw.softmax(2)[..., :-1]
            scores, order = every.squeeze(2).topk(torch.sym_min(cfg.nms_pre, anchors.shape[0]))
            offsets = _rows(deltas[level], 4).to(size).gather(1, order[..., None].expand(-1, -1, 4))
            boxes = head.bbox_coder.decode(anchors[order.flatten()], offsets.flatten(0, 1))
            found.append((boxes.view_as(offsets), scores, torch.full_like(order, level)))
        boxes, scores, levels = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        if head.bbox_coder.clip_border:
            boxes = clip(boxes, size)
        smallest = cfg.get('min_bbox_size', -1)
        if smallest >= 0:  # as in mmdet, a negative value disables the filter
            scores = scores * (boxes[..., 2:] - boxes[..., :2] > smallest).all(2)
        boxes, scores, _ = suppress(boxes, scores, levels, **nms_options(cfg))
        return boxes, scores > 0

    def _boxes(
        self, maps: Sequence[Tensor], size: Tensor, proposals: Tensor, there: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        head, cfg = self.detector.roi_head.bbox_head, self.detector.roi_head.test_cfg
        rois = _rois(proposals)
        logits, deltas = _run_where(
            there.flatten(),
            lambda rows: head(
                _extract(self.detector.roi_head.bbox_roi_extractor, maps, rois[rows])
            ),
        )
        # as in BBoxHead.predict_by_feat, which fixes the number of RoIs when it is traced
        logits, deltas = logits.to(size), deltas.to(size)
        custom = head.custom_cls_channels
        scores = head.loss_cls.get_activation(logits) if custom else logits.softmax(1)
        scores = scores[:, :-1].unflatten(0, there.shape)
        scores = scores * (scores > cfg.score_thr) * there[..., None]
        boxes = head.bbox_coder.decode(rois[:, 1:], deltas).unflatten(1, (-1, 4))
        boxes = boxes.expand(-1, head.num_classes, -1).unflatten(0, there.shape).flatten(1, 2)
        if head.bbox_coder.clip_border:
            boxes = clip(boxes, size)
        labels = torch.arange(head.num_classes, device=size.device).expand_as(scores)
        return suppress(boxes, scores.flatten(1), labels.flatten(1), **nms_options(cfg))

    def _masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        roi_head = self.detector.roi_head
        rois, classes = _rois(boxes), labels.flatten()

        def masks_of(rows: Tensor) -> tuple[Tensor]:
            logits = roi_head.mask_head(_extract(roi_head.mask_roi_extractor, maps, rois[rows]))
            if roi_head.mask_head.class_agnostic:
                return (logits[:, 0],)
            channel = classes[rows].clamp_min(0)[:, None, None, None]
            return (logits.gather(1, channel.expand(-1, -1, *logits.shape[2:]))[:, 0],)

        (logits,) = _run_where(classes >= 0, masks_of)
        masks = logits.to(boxes).sigmoid() * (classes >= 0)[:, None, None]
        return masks.unflatten(0, labels.shape)


def paste_masks(
    masks: np.ndarray, boxes: Tensor, shape: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Paste masks of the boxes into an image, as mmdet does.

    Args:
        masks: Probabilities from :class:`TwoStageGraph`, ``(n, h, w)``.
        boxes: Boxes ``(n, 4)`` in pixels of the image.
        shape: Height and width of the image.
        threshold: ``mask_thr_binary`` of ``test_cfg``.

    Returns:
        ``(n, *shape)``, bool; uint8 from 0 to 255 if the threshold is negative.
    """
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmengine.config import ConfigDict
    from mmengine.structures import InstanceData

    # pasting does not depend on the weights of the head
    head = FCNMaskHead(num_convs=0, in_channels=1, class_agnostic=True, upsample_cfg={'type': None})
    found = InstanceData(bboxes=boxes, labels=boxes.new_zeros(len(boxes), dtype=torch.long))
    head.predict_by_feat(
        [masks[:, None]],
        [found],
        [{'ori_shape': shape, 'scale_factor': (1.0, 1.0)}],
        ConfigDict(mask_thr_binary=threshold),
        activate_map=True,  # the values are probabilities already
    )
    return found.masks


def two_stage_translations(onnxscript: Any, opset: int = 18) -> dict[Any, Any]:
    """Return ``roi_align_levels`` as ONNX operators, for the exporter's translation table."""
    op = onnxscript.values.Opset('', opset)

    def translated(
        features: Sequence[Any],
        rois: Any,
        levels: Any,
        scales: Sequence[float],
        size: Sequence[int],
        sampling_ratio: int,
        aligned: bool,
    ) -> Any:
        def ints(*values: int) -> Any:
            return op.Constant(value_ints=values)

        images = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=7)  # int64
        boxes = op.Gather(rois, ints(1, 2, 3, 4), axis=1)
        shape = (op.Shape(rois, start=0, end=1), op.Shape(features[0], start=1, end=2), ints(*size))
        out = op.Expand(op.Constant(value_floats=[0.0]), op.Concat(*shape, axis=0))
        for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            rows = op.Squeeze(op.NonZero(op.Equal(levels, ints(level))), ints(0))
            pooled = op.RoiAlign(
                feature,
                op.Gather(boxes, rows),
                op.Gather(images, rows),
                coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
                output_height=size[0],
                output_width=size[1],
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
            )
            out = op.ScatterND(out, op.Unsqueeze(rows, ints(1)), pooled)
        return out

    return {torch.ops.evit_mm.roi_align_levels.default: translated}


def _roi_align_levels(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return the features ``(R, C, *size)`` of ``rois (R, 5)``, each from its level ``(R,)``."""
    from torchvision.ops import roi_align

    out = features[0].new_zeros((rois.shape[0], features[0].shape[1], *size))
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        rows = (levels == level).nonzero()[:, 0]
        out[rows] = roi_align(feature, rois[rows], size, scale, sampling_ratio, aligned)
    return out


def _roi_align_levels_shape(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,  # noqa: ARG001
    scales: Sequence[float],  # noqa: ARG001
    size: Sequence[int],
    *_: Any,
) -> Tensor:
    return features[0].new_empty((rois.shape[0], features[0].shape[1], *size))


roi_align_levels: Any = as_operator(
    'evit_mm::roi_align_levels', _roi_align_levels, _roi_align_levels_shape
)


def _extract(extractor: Any, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Return the features of each RoI as SingleRoIExtractor does, but with exact coordinates."""
    used = maps[: extractor.num_inputs]
    layer = extractor.roi_layers[0]
    found = roi_align_levels(
        [x.to(rois) for x in used],
        rois,
        extractor.map_roi_levels(rois, len(used)),
        [x.spatial_scale for x in extractor.roi_layers],
        list(layer.output_size),
        layer.sampling_ratio,
        layer.aligned,
    )
    return found.to(used[0])


def _run_where(there: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
    """Return the results of ``run`` for the rows in ``there (R,)``, and 0 for the other rows.

    A head costs much more than the rest, so that it must not run on the rows that pad the result.
    Row 0 always runs, because some runtimes refuse a convolution of nothing.
    """
    rows = (there | (torch.arange(there.shape[0], device=there.device) == 0)).nonzero()[:, 0]
    return [x.new_zeros((there.shape[0], *x.shape[1:])).index_put((rows,), x) for x in run(rows)]


def _rois(boxes: Tensor) -> Tensor:
    """Return ``(B, K, 4)`` as ``(B * K, 5)``, with the index of the image before each box."""
    images = torch.arange(boxes.shape[0], device=boxes.device).to(boxes)
    return torch.cat((images[:, None, None].expand_as(boxes[..., :1]), boxes), 2).flatten(0, 1)


def _rows(x: Tensor, columns: int) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, columns))


def _check(detector: Any) -> None:
    """Check that the graph does what the parts of the detector do."""
    from mmcv.ops import RoIAlign
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.roi_heads import StandardRoIHead, bbox_heads
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    kinds: dict[str, tuple[type, ...]] = {
        'rpn_head': (RPNHead,),
        'rpn_head.bbox_coder': (DeltaXYWHBBoxCoder,),
        'roi_head': (StandardRoIHead,),
        'roi_head.bbox_roi_extractor': (SingleRoIExtractor,),
        'roi_head.bbox_roi_extractor.roi_layers.0': (RoIAlign,),
        'roi_head.bbox_head': (
            bbox_heads.Shared2FCBBoxHead,
            bbox_heads.Shared4Conv1FCBBoxHead,
            bbox_heads.ConvFCBBoxHead,
        ),
        'roi_head.bbox_head.bbox_coder': (DeltaXYWHBBoxCoder,),
        'roi_head.shared_head': (type(None),),
    }
    if _part(detector, 'roi_head.mask_head') is not None:
        kinds |= {
            'roi_head.mask_roi_extractor': (SingleRoIExtractor,),
            'roi_head.mask_roi_extractor.roi_layers.0': (RoIAlign,),
            'roi_head.mask_head': (FCNMaskHead,),
        }
    for name, types in kinds.items():
        part = _part(detector, name)
        if type(part) not in types:
            names = ' or '.join('None' if x is type(None) else x.__name__ for x in types)
            raise ConfigError(f'{name}={type(part).__name__} cannot be exported; use {names}')
        for option, value in (('use_box_type', False), ('pool_mode', 'avg')):
            if getattr(part, option, value) != value:
                raise ConfigError(
                    f'{name}.{option}={getattr(part, option)} cannot be exported; use {value}'
                )
    for name in ('rpn', 'rcnn'):
        try:
            nms_options(detector.test_cfg[name])
            if name == 'rpn':
                positive(detector.test_cfg[name], 'nms_pre')
        except ConfigError as error:
            raise ConfigError(str(error).replace('test_cfg', f'test_cfg.{name}', 1)) from None


def _part(detector: nn.Module, name: str) -> Any:
    """Return an attribute of an attribute, or None if there is no such part."""
    part: Any = detector
    for key in name.split('.'):
        part = getattr(part, key, None)
    return part
