"""A single-stage detector as one module of tensors, for export.

mmdet's own prediction code computes the boxes and the scores. Two of its steps have outputs whose
size depends on the scores: the choice of candidates and NMS. Steps of fixed size replace them.

Shapes: batch B, padded image H x W, priors of all levels A, candidates K, detections N.
"""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ...errors import ConfigError, EvitError

# how a graph ends: with NMS, with candidates for NMS, or with all boxes and class scores
NMS, CANDIDATES, ALL = 'nms', 'candidates', 'all'
DIVISOR = 32  # each level of the pyramid is then exactly half the size of the level below
# larger than one window of the coarsest stage, so that no size in the graph is 1 by chance
EXAMPLE_SIZE = (544, 672)
# image size to which mmdet clips boxes; the graph clips them to the size of each image itself
NO_LIMIT = 2**30
Size = tuple[int, int] | None  # fixed height and width of the input image; None for any size
Detections = tuple[Tensor, Tensor, Tensor]  # boxes, scores, labels


class DetectorGraph(nn.Module):
    """The whole detector as a module that maps tensors to tensors, for export.

    Args:
        detector: A single-stage detector in eval mode. Its head predicts with mmdet's
            ``BaseDenseHead.predict_by_feat``, as RetinaNet, FCOS, ATSS, GFL and RTMDet do, or is a
            ``YOLOXHead``.
        ending: ``'nms'``; ``'candidates'``, for a runtime without NMS, which
            :func:`evit_mm.deploy.export.graph.suppress` replaces; or ``'all'``, for a runtime that
            selects candidates itself.
        dtype: Type of the network. The input, the scores and the boxes stay float32.

    Attributes:
        outputs: Names of the outputs.

    Raises:
        ConfigError: The head, or an option of ``test_cfg``, is not supported.
    """

    def __init__(
        self, detector: nn.Module, ending: str = NMS, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        _check_head(detector)
        self.cfg = detector.bbox_head.test_cfg
        if ending != ALL:
            _check_test_cfg(self.cfg, _is_yolox(detector.bbox_head))
        self.detector = detector
        if dtype != torch.float32:
            self.detector = copy.deepcopy(detector).to(dtype)
        self.ending, self.dtype = ending, dtype
        self.outputs = ['boxes', 'scores'] if ending == ALL else ['boxes', 'scores', 'labels']

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Detect objects.

        Args:
            image: Normalised and padded images ``(B, C, H, W)``, float32. H and W are multiples of
                32.
            size: Height and width of each image without padding, ``(B, 2)``, float32.

        Returns:
            ``boxes (B, N, 4)`` as x1, y1, x2, y2 in pixels of ``image``, ``scores (B, N)`` in
            descending order, and ``labels (B, N)``. N is ``max_per_img``; unused rows have score 0,
            label -1 and an empty box. With ``'candidates'``, the same for K candidates in any
            order, where score 0 means that the candidate is dropped. With ``'all'``,
            ``boxes (B, A, 4)`` and ``scores (B, A, classes)``.
        """
        head = self.detector.bbox_head
        outputs = head(self.detector.extract_feat(image.to(self.dtype)))
        maps = [[x.float() for x in levels] for levels in outputs]
        decode = _decode_yolox if _is_yolox(head) else _decode
        boxes, scores, labels = decode(head, maps, size, self.ending == ALL)
        if self.ending == ALL:
            return boxes, scores
        # as in mmdet, a negative value means no filter, and YOLOX never filters
        if self.cfg.get('min_bbox_size', -1) == 0 and not _is_yolox(head):
            scores = scores * (boxes[..., 2:] > boxes[..., :2]).all(2)
        if self.ending == CANDIDATES:
            return boxes, scores, labels
        return suppress(boxes, scores, labels, **nms_options(self.cfg))


def input_names(graph: nn.Module) -> list[str]:
    """Return the names of a graph's inputs in order."""
    return [*inspect.signature(graph.forward).parameters]


def export_program(graph: nn.Module, channels: int, size: Size) -> Any:
    """Return the ``torch.export`` program of a graph, for one image of a size or for any batch.

    A batch can have any image size, unless the graph has an ``image_size``.
    """
    batch = 2 if size is None else 1
    fixed = size or getattr(graph, 'image_size', None)
    height, width = fixed or EXAMPLE_SIZE
    example = {
        'image': torch.rand(batch, channels, height, width),
        'size': torch.tensor([(height, width)] * batch, dtype=torch.float32),
    }
    dynamic: dict[str, Any] = {'image': {}, 'size': {}}
    if size is None:
        dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in example}
    if fixed is None:
        rows, columns = (DIVISOR * torch.export.Dim(name, min=1, max=256) for name in 'hw')
        dynamic['image'] |= {2: rows, 3: columns}
    names = input_names(graph)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'torch.meshgrid', UserWarning)  # of mmdet's priors
        try:
            program = torch.export.export(
                graph.eval(),
                tuple(example[name] for name in names),
                dynamic_shapes=tuple(dynamic[name] for name in names),
            )
        except EvitError:
            raise
        except Exception as error:  # tracing runs any code of the model
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EvitError(
                f'torch.export cannot export the model ({reason}); try --static'
            ) from error
    for node in program.graph.nodes:
        node.meta.pop('stack_trace', None)  # paths of this machine, which a file would keep
    return program


def nms_options(cfg: Any) -> dict[str, Any]:
    """Return the arguments of :func:`suppress` from a ``test_cfg``.

    Raises:
        ConfigError: It has other options.
    """
    cfg = cfg.get('rcnn') or cfg  # of a two-stage detector
    nms = dict(cfg.get('nms') or {})
    if {*nms, 'type'} != {'type', 'iou_threshold'} or nms.get('type', 'nms') != 'nms':
        raise ConfigError(
            f'test_cfg.nms={nms} cannot be exported; use type nms with an iou_threshold and no '
            'other option'
        )
    most = positive(cfg, 'max_per_img')
    return {'iou_threshold': float(nms['iou_threshold']), 'max_per_img': most}


def positive(cfg: Any, key: str) -> int:
    """Return an option of a ``test_cfg``, or raise a ConfigError if it is not above 0."""
    if not cfg.get(key, -1) > 0:
        raise ConfigError(
            f'test_cfg.{key}={cfg.get(key)} cannot be exported; set it to a number above 0'
        )
    return int(cfg[key])


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, max_per_img: int
) -> Detections:
    """Keep the best boxes of each class by NMS, and sort them by score.

    Args:
        boxes: ``(B, K, 4)``.
        scores: ``(B, K)``. Candidates with score 0 are dropped.
        labels: ``(B, K)``.
        iou_threshold: Drop a box if its IoU with a better box of the class is above this.
        max_per_img: Number of boxes to keep.

    Returns:
        See :meth:`DetectorGraph.forward`.
    """
    # there can be fewer than max_per_img candidates, or none
    scores = nn.functional.pad(scores, (0, max_per_img))
    labels = nn.functional.pad(labels, (0, max_per_img))
    boxes = nn.functional.pad(boxes, (0, 0, 0, max_per_img))
    # like mmcv's batched_nms, offset the boxes of each class so that classes do not overlap
    apart = boxes + (labels * (boxes.amax((1, 2)) + 1)[:, None])[..., None]
    scores = scores * nms_mask(apart, scores, iou_threshold, max_per_img)
    scores, order = scores.topk(max_per_img)
    labels = torch.where(scores > 0, labels.gather(1, order), -1)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return boxes * (scores > 0)[..., None], scores, labels


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


def _nms_mask_shape(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(scores)


def as_operator(name: str, function: Callable, shape: Callable) -> Any:
    """Return a function as an operator of PyTorch, which a graph contains as one node.

    Args:
        name: Name of the operator.
        function: The function, with types in its signature.
        shape: Function with the same arguments that returns an empty result of the right shape.
    """
    if not hasattr(torch.library, 'custom_op'):  # before PyTorch 2.4; exports need a newer version
        return function
    operator = torch.library.custom_op(name, mutates_args=())(function)
    operator.register_fake(shape)
    return operator


nms_mask: Any = as_operator('evit_mm::nms_mask', _nms_mask, _nms_mask_shape)


def _decode(head: Any, maps: list[list[Tensor]], size: Tensor, everything: bool) -> Detections:
    """Return the candidates of a batch by the head's ``_predict_by_feat_single``.

    mmdet predicts image by image. Here the batch becomes part of the height: maps ``(B, C, h, w)``
    are one image ``(C, B * h, w)`` to mmdet, and the priors are repeated.
    """
    batch = size.shape[0]
    shapes = [x.shape[-2:] for x in maps[0]]
    priors = head.prior_generator.grid_priors(shapes, size.dtype, size.device)
    scores, boxes, *factors = [[x.transpose(0, 1).flatten(1, 2) for x in part] for part in maps]
    choice = _Choice(batch, everything)
    with _replaced(head, filter_scores_and_topk=choice, InstanceData=SimpleNamespace):
        found = head._predict_by_feat_single(
            scores,
            boxes,
            factors[0] if factors else [None] * len(shapes),
            [x.repeat(batch, 1) for x in priors],
            {'img_shape': (NO_LIMIT, NO_LIMIT)},
            head.test_cfg,
        )
    if len(choice.counts) != len(shapes) or not isinstance(found.bboxes, Tensor):
        raise _unsupported(head)
    lengths = [batch * count for count in choice.counts]
    boxes, scores, labels = (
        torch.cat([level.unflatten(0, (batch, -1)) for level in x.split(lengths)], 1)
        for x in (found.bboxes, found.scores, found.labels)
    )
    if getattr(getattr(head, 'bbox_coder', None), 'clip_border', True):
        boxes = clip(boxes, size)
    return boxes, scores, labels


def clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip boxes ``(B, K, 4)`` to images with the height and width ``size (B, 2)``."""
    return boxes.clamp_min(0).minimum(size.flip(1).repeat(1, 2)[:, None])


class _Choice:
    """A ``filter_scores_and_topk`` for a batch, with outputs of fixed size.

    With ``everything``, all rows stay, with the scores of all classes.

    Attributes:
        counts: Number of candidates per image, of each level.
    """

    def __init__(self, batch: int, everything: bool) -> None:
        self.batch, self.everything, self.counts = batch, everything, []

    def __call__(
        self, scores: Tensor, score_thr: float, topk: int, results: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Any, dict[str, Tensor]]:
        """Return scores, labels, rows and the selected ``results``; dropped scores are 0."""
        images = scores.unflatten(0, (self.batch, -1))
        _, rows, classes = images.shape
        if self.everything:
            self.counts.append(rows)
            return scores, scores[:, 0], slice(None), results
        above = torch.where(images > score_thr, images, 0).flatten(1)
        best, places = above.topk(torch.sym_min(topk, rows * classes))
        self.counts.append(best.shape[1])
        first = torch.arange(self.batch, device=scores.device)[:, None] * rows
        kept = (places // classes + first).flatten()
        results = {name: x[kept] for name, x in results.items()}
        return best.flatten(), (places % classes).flatten(), kept, results


@contextmanager
def _replaced(head: Any, **names: Any) -> Iterator[None]:
    """Replace functions that the modules of a head import, and end its prediction before NMS.

    mmdet has no other way to run its prediction code without outputs of variable size.
    """

    def finish(results: Any, **_: Any) -> Any:
        # of mmdet's own method, only this step has an output of fixed size
        if hasattr(results, 'score_factors'):
            factors = results.score_factors
            results.scores = results.scores * factors.view(-1, *[1] * (results.scores.ndim - 1))
        return results

    modules = {kind.__module__: sys.modules[kind.__module__] for kind in type(head).__mro__}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(head, '_bbox_post_process', finish))
        for module in modules.values():
            for name, value in names.items():
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, value))
        yield


def _decode_yolox(
    head: Any, maps: list[list[Tensor]], size: Tensor, everything: bool
) -> Detections:
    """Return all priors as candidates, each with its best class only, as ``YOLOXHead`` does."""
    shapes = [x.shape[-2:] for x in maps[0]]
    priors = head.prior_generator.grid_priors(shapes, size.dtype, size.device, with_stride=True)
    logits, deltas, objectness = (
        torch.cat([x.flatten(2) for x in part], 2).transpose(1, 2) for part in maps
    )
    boxes = head._bbox_decode(torch.cat(priors), deltas)
    scores = logits.sigmoid() * objectness.sigmoid()
    best, labels = scores.max(2)
    if everything:
        return boxes, scores * (scores == best[..., None]), labels
    return boxes, torch.where(best >= head.test_cfg.score_thr, best, 0), labels


def _is_yolox(head: Any) -> bool:
    from mmdet.models.dense_heads import YOLOXHead

    return isinstance(head, YOLOXHead)


def _check_head(detector: Any) -> None:
    """Check that :class:`DetectorGraph` can predict like the detector's head."""
    from mmdet.models import SingleStageDetector
    from mmdet.models.dense_heads import YOLOXHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    head = getattr(detector, 'bbox_head', None)

    def predicts_like(base: Any) -> bool:
        names = ('predict_by_feat', '_bbox_post_process')
        return all(getattr(type(head), n, None) is getattr(base, n) for n in names)

    if (
        not isinstance(detector, SingleStageDetector)
        or type(detector).predict is not SingleStageDetector.predict
        or not (predicts_like(BaseDenseHead) or predicts_like(YOLOXHead))
        or not hasattr(head, 'prior_generator')
        or getattr(getattr(head, 'bbox_coder', None), 'use_box_type', False)
    ):
        raise _unsupported(head, detector)


def _unsupported(head: Any, detector: Any = None) -> ConfigError:
    names = [type(part).__name__ for part in (detector, head) if part is not None]
    return ConfigError(
        f'{" with ".join(names)} cannot be exported, because it does not predict like RetinaNet, '
        'FCOS, ATSS, GFL, RTMDet or YOLOX; use one of them'
    )


def _check_test_cfg(cfg: Any, is_yolox: bool) -> None:
    """Check that the graph supports all options of ``test_cfg``."""
    nms_options(cfg)
    if is_yolox:
        return
    positive(cfg, 'nms_pre')
    if cfg.get('min_bbox_size', -1) > 0:  # in pixels of the original image; the graph has no scale
        raise ConfigError(
            f'test_cfg.min_bbox_size={cfg.min_bbox_size} cannot be exported; set it to 0'
        )
