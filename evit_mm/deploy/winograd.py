"""3x3 convolution by Winograd's minimal filtering, with four times fewer multiplications.

The transforms are F(4x4, 3x3) with the points 0, 1, -1, 2, -2 and infinity, from Lavin and Gray,
"Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308). The products are computed by
one batched matrix product. PyTorch's CPU convolution and oneDNN do not use this algorithm. The
relative difference from their results is about 1e-6.

Shapes: batch B, input channels C, output channels K, feature map H x W. Each tile has 4 x 4
outputs, computed from 6 x 6 inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor, nn

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)
# absent in PyTorch 2.0, which compiles this form instead of the plain convolution
_is_compiling: Callable[[], bool] = getattr(
    getattr(torch, 'compiler', None), 'is_compiling', lambda: False
)
# memory of the tiles of one step, in both domains together; small enough for the cache
_STEP_BYTES = 16 * 2**20
# smallest C K / (C + K): the saved products grow with C K, the cost of the transforms with C + K
_WORTH_IT = 64
_FEWEST_TILES = 48


class WinogradConv2d(nn.Conv2d):
    """A trained 3x3 convolution of stride 1 and padding 1, faster on a CPU in float32.

    ``(B, C, H, W) -> (B, K, H, W)``, channels last. The module falls back to the plain convolution
    on other devices and data types, under autocast, when gradients are needed, and in
    ``torch.compile`` and exports. ``load_state_dict`` updates the transformed kernel; an in-place
    change of the weight does not.

    Args:
        conv: The convolution to compute. Its parameters are shared.

    Raises:
        ValueError: The convolution is not supported; see :meth:`suits`.

    Example:
        >>> import torch
        >>> conv = torch.nn.Conv2d(96, 96, 3, padding=1)
        >>> x = torch.rand(1, 96, 40, 50)
        >>> with torch.inference_mode():
        ...     torch.allclose(WinogradConv2d(conv)(x), conv(x), atol=1e-5)
        True
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, device='meta')
        if not self.suits(conv):
            raise ValueError(f'expected a 3x3 convolution with stride 1 and padding 1, got {conv}')
        self.weight, self.bias = conv.weight, conv.bias
        # not persistent, because they are computed from the weight
        self.register_buffer('kernels', self._transformed(), persistent=False)
        for name, rows in (('to_tiles', _INPUT), ('from_tiles', _OUTPUT)):
            matrix = torch.tensor(rows, dtype=torch.float64)
            self.register_buffer(name, _matrix(torch.kron(matrix, matrix), conv), persistent=False)

    def _transformed(self) -> Tensor:
        """Return the kernels in the Winograd domain: ``(36, C, K)``."""
        kernel = torch.tensor(_KERNEL, dtype=torch.float64, device=self.weight.device)
        kernels = torch.einsum('ir,kcrs,js->ijck', kernel, self.weight.double(), kernel)
        return _matrix(kernels.flatten(0, 1), self)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.kernels = self._transformed()

    @staticmethod
    def suits(conv: nn.Conv2d) -> bool:
        """Return whether this class can compute a convolution."""
        return (
            conv.kernel_size == (3, 3)
            and conv.stride == conv.padding == conv.dilation == (1, 1)
            and conv.groups == 1
            and conv.padding_mode == 'zeros'
        )

    @classmethod
    def pays(cls, conv: nn.Conv2d) -> bool:
        """Return whether a convolution is supported and faster in this form."""
        weight, c, k = conv.weight, conv.in_channels, conv.out_channels
        return cls.suits(conv) and _fits(weight) and c * k / (c + k) >= _WORTH_IT

    def forward(self, x: Tensor) -> Tensor:
        """Transform, multiply and transform back, a few rows of tiles at a time."""
        batch, channels, height, width = x.shape
        rows, cols = -(-height // 4), -(-width // 4)
        # other runtimes and compilers get the plain convolution
        graph = torch.jit.is_tracing() or _is_compiling()
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if graph or learns or not _fits(x) or rows * cols < _FEWEST_TILES:
            return super().forward(x)
        per_tile = 36 * 4 * (channels + self.out_channels)
        step = max(1, _STEP_BYTES // per_tile // cols)
        pads = (0, 0, 1, 4 * cols + 1 - width, 1, 4 * rows + 1 - height)
        padded = F.pad(x.permute(0, 2, 3, 1), pads)
        output = x.new_empty(batch, rows, 4, cols, 4, self.out_channels)
        for image, result in zip(padded, output, strict=True):
            for row in range(0, rows, step):
                part = result[row : row + step]
                tiles = self._tiles(image[4 * row :], len(part), cols)
                part.copy_(tiles.permute(2, 0, 3, 1, 4))
        output = output.view(batch, 4 * rows, 4 * cols, self.out_channels)
        return output[:, :height, :width].permute(0, 3, 1, 2)

    def _tiles(self, image: Tensor, rows: int, cols: int) -> Tensor:
        """Convolve ``(4 * rows + 2, 4 * cols + 2, C)`` to ``(4, 4, rows, cols, K)``."""
        line, place, _ = image.stride()
        size = (6, 6, rows, cols, self.in_channels)
        # tiles overlap: each shares two rows and two columns with the next
        inputs = image.as_strided(size, (line, place, 4 * line, 4 * place, 1))
        inputs = torch.mm(self.to_tiles, inputs.reshape(36, -1))
        products = torch.bmm(inputs.view(36, rows * cols, -1), self.kernels)
        outputs = torch.mm(self.from_tiles, products.view(36, -1))
        outputs = outputs.view(4, 4, rows, cols, self.out_channels)
        return outputs if self.bias is None else outputs.add_(self.bias)


def autocasts(x: Tensor) -> bool:
    """Return whether autocast is enabled on a tensor's device."""
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.is_autocast_enabled(x.device.type)
    # before PyTorch 2.4, each device has a separate function
    on_cpu = x.device.type == 'cpu'
    return torch.is_autocast_cpu_enabled() if on_cpu else torch.is_autocast_enabled()


def _fits(x: Tensor) -> bool:
    # in half precision, cancellation in the transforms would lose the result
    return x.device.type == 'cpu' and x.dtype == torch.float32 and not autocasts(x)


def _matrix(x: Tensor, conv: nn.Conv2d) -> Tensor:
    return x.detach().to(conv.weight).contiguous()
