"""The exact fast form of a trained network, for inference.

Everything here is algebra on trained weights: the fused model computes the same function, and
:func:`fuse` checks that it does before handing it out.

Shapes: B batch, C channels, H x W map; M windows of w x w = N tokens; K channels of one head's
query and key, D of its value.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from mmengine.logging import print_log
from torch import Tensor, nn

from .errors import EvitError
from .models import EfficientViT, EfficientViTHead
from .models.attention import CascadedGroupAttention, WindowAttention
from .models.layers import FFN, BNLinear, ConvBN, Residual

TOLERANCE = 1e-4
PROBE_SIZE = (96, 160)  # gives every stage of every variant maps that are not whole windows


def fold_conv_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution that computes ``bn(conv(x))`` in eval mode.

    Folded in float64, so that the only rounding is that of the result.
    """
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.double()
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter(
        (conv.weight.double() * scale[:, None, None, None]).to(conv.weight)
    )
    shifted = (bias - bn.running_mean.double()) * scale + bn.bias.double()
    folded.bias = nn.Parameter(shifted.to(conv.weight))
    return folded


def fold_residual_depthwise(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a depthwise convolution that computes ``x + conv(x)``: 1 is added at its centre.

    Raises:
        ValueError: The convolution is not depthwise, or changes the size.
    """
    if not conv.in_channels == conv.out_channels == conv.groups or conv.stride != (1, 1):
        raise ValueError(f'only a depthwise convolution of stride 1 can take up its input: {conv}')
    folded = copy.deepcopy(conv)
    height, width = conv.kernel_size
    with torch.no_grad():
        folded.weight[:, 0, height // 2, width // 2] += 1
    return folded


class FusedFFN(nn.Module):
    """``x + pw2(relu(pw1(x)))`` as two matrix products: ``(B, C, H, W) -> (B, C, H, W)``."""

    def __init__(self, ffn: FFN) -> None:
        super().__init__()
        self.pw1, self.pw2 = (_linear(fold_conv_bn(part.c, part.bn)) for part in (ffn.pw1, ffn.pw2))

    def forward(self, x: Tensor) -> Tensor:
        """Work on tokens with their channels last, the layout that the products want."""
        tokens = x.permute(0, 2, 3, 1)
        return self.pw2(self.pw1(tokens).relu_()).add_(tokens).permute(0, 3, 1, 2)


class FusedWindowAttention(nn.Module):
    """``x + attention(x)`` on windows: ``(B, C, H, W) -> (B, C, H, W)``.

    Tokens stay channels last from the cut into windows to their putting together; the scale is in
    the query's depthwise kernel, and the biases are gathered.
    """

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
        """Cut, attend head after head, project, add, put together."""
        batch, channels, height, width = x.shape
        w = self.window_size
        rows, cols = (height + w - 1) // w, (width + w - 1) // w
        tokens = x.permute(0, 2, 3, 1)
        if (rows * w, cols * w) != (height, width):
            tokens = F.pad(tokens, (0, 0, 0, cols * w - width, 0, rows * w - height))
        tokens = tokens.reshape(batch, rows, w, cols, w, channels).transpose(2, 3)
        tokens = tokens.reshape(-1, channels)  # (M * N, C)
        output = self.proj(self._attend(tokens).relu_()).add_(tokens)
        output = output.view(batch, rows, cols, w, w, channels).transpose(2, 3)
        output = output.reshape(batch, rows * w, cols * w, channels)
        return output[:, :height, :width].permute(0, 3, 1, 2)

    def _attend(self, tokens: Tensor) -> Tensor:
        """Return the heads' outputs side by side: ``(M * N, C) -> (M * N, C)``."""
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
    """Return a copy of a trained model in its fast form, for inference alone.

    BatchNorm goes into every convolution and linear layer of each EfficientViT in the model, the
    residual add into the depthwise convolutions, the attention scale into the query path; biases
    are gathered once, and the layout is channels last throughout. What it folded is logged.

    Args:
        model: An :class:`~evit_mm.models.EfficientViT`, or a module that contains some, such as a
            detector; in eval mode, and left as it is.

    Returns:
        The fast form, in eval mode and without gradients.

    Raises:
        EvitError: The model is in training mode, contains no EfficientViT, or its fast form
            differs from it by more than 1e-4 on a random image.

    Example:
        >>> import torch
        >>> from evit_mm.models import EfficientViT
        >>> backbone = EfficientViT(arch='m0').eval()
        >>> fast = fuse(backbone)
        >>> [tuple(x.shape) for x in fast(torch.rand(1, 3, 64, 64))]
        [(1, 64, 4, 4), (1, 128, 2, 2), (1, 192, 1, 1)]
    """
    if model.training:
        raise EvitError('fuse() takes a trained model in eval mode; call model.eval() first')
    originals = [m for m in model.modules() if isinstance(m, EfficientViT)]
    if not originals:
        raise EvitError(f'fuse() found no EfficientViT in this {type(model).__name__}')
    fused = copy.deepcopy(model)
    counts: Counter[str] = Counter()
    copies = [m for m in fused.modules() if isinstance(m, EfficientViT)]
    for part in (*copies, *(m for m in fused.modules() if isinstance(m, EfficientViTHead))):
        _replace(part, counts)
    fused.to(memory_format=torch.channels_last)
    for original, backbone in zip(originals, copies, strict=True):
        _check(original, backbone)
    folded = ', '.join(f'{number} {what}' for what, number in sorted(counts.items()))
    print_log(f'fused: {folded}', logger='current')
    return fused.eval().requires_grad_(False)


def _replace(module: nn.Module, counts: Counter[str]) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConvBN):
            setattr(module, name, fold_conv_bn(child.c, child.bn))
            counts['BatchNorms into convolutions'] += 1
        elif isinstance(child, Residual) and isinstance(child.m, ConvBN):
            folded = fold_residual_depthwise(fold_conv_bn(child.m.c, child.m.bn))
            setattr(module, name, folded)
            counts['residual depthwise convolutions'] += 1
        elif isinstance(child, Residual) and isinstance(child.m, FFN):
            setattr(module, name, FusedFFN(child.m))
            counts['FFNs'] += 1
        elif isinstance(child, Residual) and isinstance(child.m, WindowAttention):
            setattr(module, name, FusedWindowAttention(child.m.attn))
            counts['window attentions'] += 1
        elif isinstance(child, nn.ReLU):
            # of a convolution's own output, which nobody else reads
            setattr(module, name, nn.ReLU(inplace=True))
        elif isinstance(child, BNLinear):
            setattr(module, name, _fold_bn_linear(child))
            counts['BatchNorms into linear layers'] += 1
        else:
            _replace(child, counts)


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


def _check(original: EfficientViT, fused: nn.Module) -> None:
    weight = next(original.parameters())
    generator = torch.Generator().manual_seed(0)
    channels = original.patch_embed[0].c.in_channels
    image = torch.randn(1, channels, *PROBE_SIZE, generator=generator).to(weight)
    with torch.inference_mode():
        pairs = zip(original(image), fused(image), strict=True)
        errors = [float((a - b).norm() / a.norm().clamp_min(1e-12)) for a, b in pairs]
    if not max(errors) <= TOLERANCE * (1 if weight.dtype == torch.float32 else 100):
        raise EvitError(
            f'the fused form differs from the model by {max(errors):.1e} (relative), more than '
            f'{TOLERANCE:g}; its weights are too large for {weight.dtype}; use it unfused'
        )
