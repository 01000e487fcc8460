"""Faster post-processing for anchor heads that skips candidates below the score threshold.

The result equals that of mmdet's ``BaseDenseHead.predict_by_feat``, which computes the anchors and
scores of all locations. This module first compares the logits with the threshold, and then
computes scores, anchors and boxes only for the candidates above it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from mmdet.models.dense_heads import AnchorHead, RetinaHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from mmengine.structures import InstanceData
from torch import Tensor, nn

_MARGIN = 0.05  # in logits; larger than the rounding error of a half-precision sigmoid


def can_predict_sparsely(head: nn.Module) -> bool:
    """Return whether a head predicts exactly like mmdet's anchor heads with sigmoid scores."""
    kind = type(head)
    return (
        isinstance(head, AnchorHead)
        and kind.forward_single in (AnchorHead.forward_single, RetinaHead.forward_single)
        and kind.predict_by_feat is BaseDenseHead.predict_by_feat
        and kind._predict_by_feat_single is BaseDenseHead._predict_by_feat_single
        and kind._bbox_post_process is BaseDenseHead._bbox_post_process
        and type(head.prior_generator) is AnchorGenerator
        and head.use_sigmoid_cls
        and not getattr(head.loss_cls, 'custom_cls_channels', False)
    )


def predict_sparsely(head: nn.Module) -> None:
    """Replace the head's ``predict_by_feat`` by the one of this module."""
    head.predict_by_feat = partial(predict_by_feat, head)


def predict_by_feat(
    head: AnchorHead,
    cls_scores: list[Tensor],
    bbox_preds: list[Tensor],
    score_factors: None = None,  # noqa: ARG001 - part of mmdet's signature; anchors have none
    batch_img_metas: list[dict] | None = None,
    cfg: Any = None,
    rescale: bool = False,
    with_nms: bool = True,
) -> list[InstanceData]:
    """Return the detections, with the arguments and results of the mmdet method of the same name.

    The head must pass :func:`can_predict_sparsely`. For half-precision maps, anchors and boxes are
    float32, whereas mmdet computes them in half precision.
    """
    cfg = head.test_cfg if cfg is None else cfg
    levels = [
        (_rows(scores, 1), _rows(deltas, head.bbox_coder.encode_size), scores.shape[-2:])
        for scores, deltas in zip(cls_scores, bbox_preds, strict=True)
    ]
    results = []
    for image, meta in enumerate(batch_img_metas or []):
        found = [
            _candidates(head, scores[image, :, 0], deltas[image], size, level, cfg)
            for level, (scores, deltas, size) in enumerate(levels)
        ]
        scores, labels, deltas, anchors = (torch.cat(parts) for parts in zip(*found, strict=True))
        boxes = head.bbox_coder.decode(anchors, deltas, max_shape=meta['img_shape'])
        result = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        result = head._bbox_post_process(result, cfg, rescale, with_nms, meta)
        results.append(result)
    return results


def _candidates(
    head: AnchorHead, logits: Tensor, deltas: Tensor, size: torch.Size, level: int, cfg: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scores, labels, deltas and anchors of the best candidates of one level."""
    threshold, most = cfg.get('score_thr', 0), cfg.get('nms_pre', -1)
    places = (logits > _logit(threshold) - _MARGIN).nonzero().squeeze(1)
    scores = logits[places].sigmoid()
    above = scores > threshold
    # as in mmdet, -1 drops the last candidate, although it means "all" in mmdet's configs
    scores, order = scores[above].sort(descending=True)
    most = min(most, len(scores))
    places = places[above][order[:most]]
    priors = places // head.cls_out_channels
    # mmdet keeps the base anchors on the CPU
    anchors = head.prior_generator.sparse_priors(
        priors.cpu(), tuple(size), level, deltas.dtype, 'cpu'
    )
    anchors = anchors.to(deltas.device)
    return scores[:most], places % head.cls_out_channels, deltas[priors], anchors


def _rows(x: Tensor, columns: int) -> Tensor:
    """``(B, C, H, W) -> (B, H * W * C / columns, columns)``; a view in channels-last layout."""
    return x.detach().permute(0, 2, 3, 1).reshape(len(x), -1, columns)


def _logit(score: float) -> float:
    if score <= 0:
        return -math.inf
    return math.inf if score >= 1 else math.log(score / (1 - score))
