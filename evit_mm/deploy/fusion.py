"""Fusion of a trained network for inference.

Fusion only rearranges trained weights. The fused model computes the same function, and
:func:`fuse` checks this before it returns the model.

Shapes: batch B, channels C, feature map H x W; M windows of w x w = N tokens. In one head, the
query and the key have K channels, and the value has D channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import zip_longest

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import EvitError
from ..models import EfficientViT, EfficientViTHead
from ..models.attention import CascadedGroupAttention, WindowAttention
from ..models.layers import FFN, BNLinear, ConvBN, Residual
from .winograd import WinogradConv2d, autocasts

TOLERANCE = 1e-4
PROBE_SIZE = (96, 160)  # in each stage of each variant, the windows need padding
PROBE_MAP = (29, 30)  # for a convolution, where the tiles need padding
# absent before PyTorch 2.7, with which no model is exported
_is_exporting: Callable[[], bool] = getattr(
    getattr(torch, 'compiler', None), 'is_exporting', lambda: False
)


def fold_conv_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution that computes ``bn(conv(x))`` in eval mode.

    The weights are folded in float64; only the result is rounded.
    """
    exact = (copy.deepcopy(part).double().eval() for part in (conv, bn))
    return fuse_conv_bn_eval(*exact).to(conv.weight.dtype)


def fold_residual_depthwise(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a depthwise convolution that computes ``x + conv(x)``, with 1 added at its centre."""
    folded = copy.deepcopy(conv)
    height, width = conv.kernel_size
    with torch.no_grad():
        folded.weight[:, 0, height // 2, width // 2] += 1
    return folded


def _add_product(total: Tensor, x: Tensor, weight: Tensor, in_place: bool) -> Tensor:
    """Return ``total + x @ weight.T``. ``in_place`` is faster, but not under autocast."""
    if autocasts(total) or not in_place:  # autocast does not support in-place products
        return total + F.linear(x, weight)
    return total.addmm_(x, weight.t())


class FusedConvFFN(nn.Module):
    """``y = x + dw(x)``, then ``y + pw2(relu(pw1(y)))``: ``(B, C, H, W) -> (B, C, H, W)``.

    The depthwise convolution also adds pw2's bias b and returns ``y' = y + b``. The bias of pw1 is
    reduced by ``pw1 @ b`` to compensate. The second product is added to ``y'`` in-place, which
    saves the passes over memory for the residual and the bias.
    """

    in_place = True  # some runtimes have fast kernels only for linear layers

    def __init__(self, conv: ConvBN, ffn: FFN) -> None:
        super().__init__()
        self.dw = fold_residual_depthwise(fold_conv_bn(conv.c, conv.bn))
        self.pw1, self.pw2 = (_linear(fold_conv_bn(part.c, part.bn)) for part in (ffn.pw1, ffn.pw2))
        with torch.no_grad():
            bias = self.pw2.bias.double()
            shifted = self.pw1.bias.double() - self.pw1.weight.double() @ bias
            self.dw.bias.copy_(self.dw.bias.double() + bias)
            self.pw1.bias.copy_(shifted)
        self.pw2.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution and add the output of the FFN."""
        tokens = self.dw(x).permute(0, 2, 3, 1).contiguous()  # no copy in channels-last layout
        hidden = self.pw1(tokens).relu_().flatten(0, 2)
        added = _add_product(tokens.flatten(0, 2), hidden, self.pw2.weight, self.in_place)
        return added.view_as(tokens).permute(0, 3, 1, 2)


class FusedPointwise(nn.Module):
    """A 1x1 convolution as a matrix product on tokens: ``(B, C, H, W) -> (B, D, H, W)``."""

    def __init__(self, conv: ConvBN) -> None:
        super().__init__()
        self.linear = _linear(fold_conv_bn(conv.c, conv.bn))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each token by the weights."""
        return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FusedWindowAttention(nn.Module):
    """``x + attention(x)`` on windows: ``(B, C, H, W) -> (B, C, H, W)``.

    Tokens keep the channels-last layout from the window partition to its inverse. The scale is
    folded into the query's depthwise kernel. The attention biases are gathered once.
    """

    in_place = True  # as in FusedConvFFN

    def __init__(self, attention: CascadedGroupAttention) -> None:
        super().__init__()
        self.window_size = attention.window_size
        self.split_sizes = attention.split_sizes
        self.qkvs = nn.ModuleList(_linear(fold_conv_bn(m.c, m.bn)) for m in attention.qkvs)
        self.dws = nn.ModuleList(fold_conv_bn(m.c, m.bn) for m in attention.dws)
        with torch.no_grad():
            for conv in self.dws:
                conv.weight *= attention.scale
                conv.bias *= attention.scale
        self.proj = _linear(fold_conv_bn(attention.proj[1].c, attention.proj[1].bn))
        biases = attention.attention_biases.detach()[:, attention.attention_bias_idxs]
        self.register_buffer('biases', biases[:, None].clone())  # (heads, 1, N, N)

    def forward(self, x: Tensor) -> Tensor:
        """Partition into windows, attend head by head, project, add and undo the partition."""
        batch, channels, height, width = x.shape
        w = self.window_size
        rows, cols = (height + w - 1) // w, (width + w - 1) // w
        tokens = x.permute(0, 2, 3, 1)
        exporting = torch.jit.is_tracing() or _is_exporting()
        # an exported graph must accept any size, so it always contains the padding
        if exporting or (rows * w, cols * w) != (height, width):
            tokens = F.pad(tokens, (0, 0, 0, cols * w - width, 0, rows * w - height))
        tokens = tokens.reshape(batch, rows, w, cols, w, channels).transpose(2, 3)
        tokens = tokens.reshape(-1, channels)  # (M * N, C)
        output = torch.add(tokens, self.proj.bias)
        output = _add_product(output, self._attend(tokens).relu_(), self.proj.weight, self.in_place)
        output = output.view(batch, rows, cols, w, w, channels).transpose(2, 3)
        output = output.reshape(batch, rows * w, cols * w, channels)
        return output.narrow(1, 0, height).narrow(2, 0, width).permute(0, 3, 1, 2)

    def _attend(self, tokens: Tensor) -> Tensor:
        """Return the concatenated outputs of the heads: ``(M * N, C) -> (M * N, C)``."""
        w = self.window_size
        size = w * w
        heads: list[Tensor] = []
        parts = tokens.chunk(len(self.qkvs), dim=1)
        for part, qkv, dw, bias in zip(parts, self.qkvs, self.dws, self.biases, strict=True):
            feat = part + heads[-1] if heads else part
            q, k, v = qkv(feat).split(self.split_sizes, dim=1)
            q = dw(q.reshape(-1, w, w, q.shape[1]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            q = q.reshape(-1, size, q.shape[3])  # (M, N, K)
            k, v = (x.view(-1, size, x.shape[1]) for x in (k, v))
            attention = torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(dim=-1)
            heads.append((attention @ v).view(-1, v.shape[2]))
        return torch.cat(heads, dim=1)


def fuse(model: nn.Module) -> nn.Module:
    """Return a copy of a trained model in which each EfficientViT is fused for inference.

    BatchNorm is folded into each convolution and linear layer of the network and its
    classification head. The residual is folded into the depthwise convolutions, and the attention
    scale into the query path. The attention biases are gathered once, and the layout is channels
    last. Other parts of the model do not change; see :func:`fuse_detector`.

    Args:
        model: An :class:`~evit_mm.models.EfficientViT`, or a module that contains one or more, in
            eval mode. It is not modified.

    Returns:
        The fused model, in eval mode and without gradients.

    Raises:
        EvitError: The model is in training mode or contains no EfficientViT, or the relative error
            of a fused EfficientViT on a random input is too large. The limit is 1e-4 in float32 and
            1e-2 in other types, or ten times the rounding error of the unfused network, whichever
            is larger.

    Example:
        >>> import torch
        >>> from evit_mm.models import EfficientViT
        >>> backbone = EfficientViT(arch='m0').eval()
        >>> fast = fuse(backbone)
        >>> [tuple(x.shape) for x in fast(torch.rand(1, 3, 64, 64))]
        [(1, 64, 4, 4), (1, 128, 2, 2), (1, 192, 1, 1)]
    """
    if model.training:
        raise EvitError('fuse() needs a model in eval mode; call model.eval() first')
    originals = [m for m in model.modules() if isinstance(m, EfficientViT)]
    if not originals:
        raise EvitError(
            f'fuse() found no EfficientViT in this {type(model).__name__}; give a model with an '
            'EfficientViT backbone'
        )
    fused = copy.deepcopy(model)
    copies = [m for m in fused.modules() if isinstance(m, EfficientViT)]
    for part in (*copies, *(m for m in fused.modules() if isinstance(m, EfficientViTHead))):
        _replace(part)
    fused.to(memory_format=torch.channels_last)
    for original, backbone in zip(originals, copies, strict=True):
        _check(original, backbone, (original.patch_embed[0].c.in_channels, *PROBE_SIZE))
    return fused.eval().requires_grad_(False)


def fuse_detector(detector: nn.Module) -> nn.Module:
    """Return a copy of a trained detector with fused backbone, neck, head and post-processing.

    The backbone is fused by :func:`fuse`. On a CPU in float32, large 3x3 convolutions of the neck
    and the head become :class:`~evit_mm.deploy.winograd.WinogradConv2d`. Anchor heads of mmdet
    with sigmoid scores use :func:`~evit_mm.deploy.sparse_prediction.predict_by_feat`.

    Args:
        detector: An mmdet detector with an EfficientViT, in eval mode. It is not modified.

    Returns:
        The fused detector, in eval mode and without gradients.

    Raises:
        EvitError: See :func:`fuse`. The same limit applies to each replaced convolution.
    """
    from .sparse_prediction import can_predict_sparsely, predict_sparsely  # needs mmdet

    fused = fuse(detector)
    _replace_convolutions(fused)
    for head in filter(can_predict_sparsely, fused.modules()):
        predict_sparsely(head)
    return fused.requires_grad_(False)


def _replace(module: nn.Module) -> None:
    """Replace the children by their fused forms, where they run in sequence."""
    children = dict(module.named_children())
    for (name, child), following in zip_longest(children.items(), [*children][1:]):
        branch = child.m if isinstance(child, Residual) else None
        if isinstance(branch, ConvBN):
            # a depthwise convolution of a block; only the next FFN reads its output
            ffn = children[following].m
            setattr(module, name, FusedConvFFN(branch, ffn))
            setattr(module, following, nn.Identity())
        elif isinstance(branch, WindowAttention):
            setattr(module, name, FusedWindowAttention(branch.attn))
        elif isinstance(child, ConvBN):
            is_pointwise = child.c.kernel_size == (1, 1)
            folded = FusedPointwise(child) if is_pointwise else fold_conv_bn(child.c, child.bn)
            setattr(module, name, folded)
        elif isinstance(child, BNLinear):
            setattr(module, name, _fold_bn_linear(child))
        elif branch is None:
            _replace(child)


def _replace_convolutions(model: nn.Module) -> None:
    """Replace each convolution that is faster with Winograd's algorithm."""
    faster: dict[nn.Module, WinogradConv2d] = {}  # a convolution can be shared by several modules
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Conv2d and WinogradConv2d.pays(child):
                if child not in faster:
                    faster[child] = WinogradConv2d(child)
                    _check(child, faster[child], (child.in_channels, *PROBE_MAP))
                setattr(module, name, faster[child])


def _linear(conv: nn.Conv2d) -> nn.Linear:
    """Return a 1x1 convolution as a linear layer on the last dimension."""
    linear = nn.Linear(conv.in_channels, conv.out_channels, device='meta')
    linear.weight = nn.Parameter(conv.weight.detach()[:, :, 0, 0].contiguous())
    linear.bias = nn.Parameter(conv.bias.detach())
    return linear


def _fold_bn_linear(head: BNLinear) -> nn.Linear:
    bn, linear = head.bn, head.l
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    shift = bn.bias.double() - bn.running_mean.double() * scale
    folded = copy.deepcopy(linear)
    weight = linear.weight.double()
    folded.weight = nn.Parameter((weight * scale).to(linear.weight))
    bias = linear.bias.double() + weight @ shift
    folded.bias = nn.Parameter(bias.to(linear.weight))
    return folded


def _check(original: nn.Module, fused: nn.Module, size: tuple[int, ...]) -> None:
    """Check both modules against the original in float64, on a random input."""
    weight = next(original.parameters())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *size, generator=generator).to(weight)
    with torch.inference_mode():
        exact = copy.deepcopy(original).double()(x.double())
        rounding, error = (_error(model(x), exact) for model in (original, fused))
    # large weights saturate the attention, which amplifies rounding in both modules
    allowed = max(TOLERANCE * (1 if weight.dtype == torch.float32 else 100), 10 * rounding)
    if not error <= allowed:
        raise EvitError(
            f'the fused model has a relative error of {error:.1e} (limit {allowed:.1e}), because '
            f'its weights are too large for {weight.dtype}; use the model without fusion'
        )


def _error(found: Iterable[Tensor] | Tensor, exact: Iterable[Tensor] | Tensor) -> float:
    """Return the largest relative error of one or several tensors."""
    found, exact = ([x] if isinstance(x, Tensor) else x for x in (found, exact))
    pairs = zip(found, exact, strict=True)
    errors = [(a - b).norm() / b.norm().clamp_min(1e-12) for a, b in pairs]
    return float(torch.stack(errors).max())  # unlike Python's max, this keeps NaN
