"""Boxes from the maps of an anchor head, without work on those below the score threshold.

What mmdet's ``BaseDenseHead.predict_by_feat`` returns, by a shorter way: it makes every anchor,
every score and a mask of all of them; here the logits are compared once, and only those above the
threshold get a score, an anchor and a box.
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

_MARGIN = 0.05  # of a logit, wider than its rounding and its sigmoid's in half precision


def can_predict_sparsely(head: nn.Module) -> bool:
    """Say whether a head predicts exactly as mmdet's anchor heads with sigmoid scores do."""
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
    """Let a head predict by :func:`predict_by_feat`."""
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
    """Do what the method of this name does in mmdet, with its arguments and its results.

    The head is one that :func:`can_predict_sparsely`. Of maps in half precision the anchors, and so
    the boxes, are float32 here, half in mmdet.
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
    """Return scores, labels, deltas and anchors of a level's best boxes above the threshold."""
    threshold, most = cfg.get('score_thr', 0), cfg.get('nms_pre', -1)
    places = (logits > _logit(threshold) - _MARGIN).nonzero().squeeze(1)
    scores = logits[places].sigmoid()
    above = scores > threshold
    # mmdet's slice: -1, which stands for "all" in its configs, drops the last one there
    scores, order = scores[above].sort(descending=True)
    most = min(most, len(scores))
    places = places[above][order[:most]]
    priors = places // head.cls_out_channels
    # mmdet keeps the anchors that it takes them from on the CPU
    anchors = head.prior_generator.sparse_priors(
        priors.cpu(), tuple(size), level, deltas.dtype, 'cpu'
    )
    anchors = anchors.to(deltas.device)
    return scores[:most], places % head.cls_out_channels, deltas[priors], anchors


def _rows(x: Tensor, columns: int) -> Tensor:
    """``(B, C, H, W) -> (B, H * W * C / columns, columns)``: a view where channels are last."""
    return x.detach().permute(0, 2, 3, 1).reshape(len(x), -1, columns)


def _logit(score: float) -> float:
    if score <= 0:
        return -math.inf
    return math.inf if score >= 1 else math.log(score / (1 - score))
