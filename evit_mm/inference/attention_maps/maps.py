"""The attention of each head on an image, and the similarity of two heads, as tensors.

The network is not modified. Hooks record the inputs of the attention modules, and the attention is
computed a second time from these inputs.

Shapes: M windows of w x w = N tokens, heads h, D = C / h channels of one head's value, feature map
H x W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from ...models import EfficientViT
from ...models.attention import CascadedGroupAttention, WindowAttention
from ...models.window import window_partition, window_unpartition


@dataclass
class BlockAttention:
    """The attention of one block on one image."""

    stage: int  # from 1, as in the names of the checkpoint
    block: int  # index in the stage, from 1
    stride: int  # pixels per token
    size: tuple[int, int]  # (H, W)
    window_size: int
    weights: Tensor  # (h, M, N, N), weights of each query over the keys of its window
    outputs: Tensor  # (h, D, H, W), output of each head

    @property
    def valid(self) -> Tensor:
        """Mask of the tokens that are not padding, ``(M, N)`` bool."""
        ones = torch.ones(1, 1, *self.size, device=self.weights.device)
        return window_partition(ones, self.window_size).flatten(1).bool()


def attention_of_heads(attn: CascadedGroupAttention, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the attention weights and outputs of each head on windows ``(M, C, w, w)``.

    Returns:
        Weights ``(h, M, N, N)``, where each row sums to 1, and outputs ``(h, M, D, w, w)``. The
        module projects the concatenated outputs.
    """
    biases = attn.attention_biases[:, attn.attention_bias_idxs]
    weights: list[Tensor] = []
    outputs: list[Tensor] = []
    parts = windows.chunk(len(attn.qkvs), dim=1)
    for part, qkv, dw, bias in zip(parts, attn.qkvs, attn.dws, biases, strict=True):
        feat = part + outputs[-1] if outputs else part
        q, k, v = qkv(feat).split(attn.split_sizes, dim=1)
        q = dw(q).flatten(2).transpose(1, 2) * attn.scale
        weights.append((q @ k.flatten(2) + bias).softmax(dim=-1))
        output = v.flatten(2) @ weights[-1].transpose(1, 2)  # (M, D, N)
        outputs.append(output.unflatten(2, part.shape[2:]))
    return torch.stack(weights), torch.stack(outputs)


def look(backbone: EfficientViT, image: Tensor) -> list[BlockAttention]:
    """Return the attention of each block on a normalised image ``(1, C, H, W)``."""
    inputs: dict[WindowAttention, Tensor] = {}

    def keep(mixer: WindowAttention, args: tuple[Tensor]) -> None:
        (inputs[mixer],) = args

    places = {}
    for stage, modules in enumerate(backbone.stages, start=1):
        mixers = [module for module in modules.modules() if isinstance(module, WindowAttention)]
        places.update({mixer: (stage, block) for block, mixer in enumerate(mixers, start=1)})
    hooks = [mixer.register_forward_pre_hook(keep) for mixer in places]
    with torch.no_grad():
        backbone(image)
        for hook in hooks:
            hook.remove()
        return [_attention(*places[mixer], mixer, x) for mixer, x in inputs.items()]


def _attention(stage: int, block: int, mixer: WindowAttention, x: Tensor) -> BlockAttention:
    height, width = x.shape[2:]
    side = mixer.attn.window_size
    weights, outputs = attention_of_heads(mixer.attn, window_partition(x, side))
    whole = torch.cat([window_unpartition(output, height, width) for output in outputs])
    return BlockAttention(stage, block, 8 << stage, (height, width), side, weights, whole)


def received(block: BlockAttention) -> Tensor:
    """Return the attention that each token receives, relative to uniform attention: ``(h, H, W)``.

    The value is the mean over the queries of the window, without padding.
    """
    valid = block.valid
    asked = valid[None, :, :, None] * block.weights
    mean = asked.sum(2) / valid.sum(1)[None, :, None]
    return _whole(block, mean)


def given(block: BlockAttention, row: int, column: int) -> Tensor:
    """Return the attention of one token to all others, relative to uniform attention.

    The shape is ``(h, H, W)``, with 0 outside the window of the token.
    """
    side, columns = block.window_size, -(-block.size[1] // block.window_size)
    window = row // side * columns + column // side
    query = row % side * side + column % side
    only = torch.zeros_like(block.weights[:, :, 0])
    only[:, window] = block.weights[:, window, query]
    return _whole(block, only)


def _whole(block: BlockAttention, tokens: Tensor) -> Tensor:
    """Convert windows to maps, ``(h, M, N) -> (h, H, W)``, in units of 1 / N."""
    side = block.window_size
    windows = (tokens * side**2).transpose(0, 1).unflatten(2, (side, side))  # (M, h, w, w)
    return window_unpartition(windows, *block.size)[0]


def attention_divergence(block: BlockAttention) -> Tensor:
    """Return the mean Jensen-Shannon divergence of the weights of each two heads: ``(h, h)``.

    The unit is bits. The value is 0 for equal weights, and 1 if two heads have no token in common.
    """
    weights = block.weights[:, block.valid].double()  # (h, queries, N)
    mixed = (weights[:, None] + weights[None]) / 2
    entropies = _entropy(weights)
    divergence = _entropy(mixed) - (entropies[:, None] + entropies[None]) / 2
    return divergence.mean(2).clamp(0, 1)


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1) / math.log(2)


def attention_cosine(block: BlockAttention) -> Tensor:
    """Return the mean cosine of the weights of each two heads: ``(h, h)``, from 0 to 1."""
    weights = nn.functional.normalize(block.weights[:, block.valid].double(), dim=-1)
    return torch.einsum('aqn,bqn->abq', weights, weights).mean(2)


def output_similarity(block: BlockAttention) -> Tensor:
    """Return the linear CKA of the outputs of each two heads: ``(h, h)``, from 0 to 1.

    The heads have different channels, so the measure must not depend on a rotation of the channels
    (Kornblith et al., arXiv 1905.00414, equation 5). The value is NaN for a head with the same
    output at all tokens, for example an untrained head on a map of one window.
    """
    tokens = block.outputs.double().flatten(2).transpose(1, 2)  # (h, H * W, D)
    centred = tokens - tokens.mean(1, keepdim=True)
    spread = centred.norm(dim=(1, 2), keepdim=True)
    varies = spread > 1e-6 * tokens.norm(dim=(1, 2), keepdim=True)
    centred = torch.where(varies, centred / spread, math.nan)
    cross = torch.einsum('and,bne->abde', centred, centred).square().sum((2, 3))
    norms = cross.diagonal().sqrt()
    return cross / (norms[:, None] * norms[None])


MEASURES = {
    'attention_divergence': attention_divergence,
    'attention_cosine': attention_cosine,
    'output_cka': output_similarity,
}


def similarities(blocks: Sequence[BlockAttention]) -> dict[str, Any]:
    """Measure the similarity of the heads of each block.

    Returns:
        A dictionary. ``blocks`` contains, for each block and each of :data:`MEASURES`, the matrix
        and its mean over all pairs of heads. ``stages`` contains the mean over the blocks of each
        stage. Undefined values are None, for example with a single head.
    """
    entries: list[dict[str, Any]] = []
    for block in blocks:
        entry: dict[str, Any] = {'stage': block.stage, 'block': block.block}
        for name, measure in MEASURES.items():
            matrix = measure(block)
            pairs = matrix[~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)]
            entry[name] = {'matrix': matrix.tolist(), 'mean': float(pairs.mean())}
        entries.append(entry)
    stages = []
    for stage, of_stage in groupby(entries, key=itemgetter('stage')):
        own = list(of_stage)
        means = {name: fmean(entry[name]['mean'] for entry in own) for name in MEASURES}
        stages.append({'stage': stage, **means})
    return _without_nan({'blocks': entries, 'stages': stages})


def _without_nan(value: Any) -> Any:
    """Replace NaN by None in nested lists and dictionaries, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if value != value else value
