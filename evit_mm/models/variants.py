"""Architectures of EfficientViT-M0 to M5, and validation of custom architectures.

Source of the values: arXiv 2305.07027, table 3, and the authors' classification code. The query
kernels of M0 are those of its ImageNet weights, (5, 5, 5, 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from numbers import Integral
from typing import Any

from ..utils.text import counted, did_you_mean

NUM_STAGES = 3


@dataclass(frozen=True)
class Variant:
    """One architecture. Each field has one value per stage, except ``kernel_sizes``.

    Args:
        embed_dims: Channels of each stage. The first must be a multiple of 8 because of the stem.
        depths: Number of blocks in each stage.
        num_heads: Attention heads of each stage. They must divide the channels of the stage.
        kernel_sizes: Kernel size of the depthwise conv on the query, one odd number per head. A
            stage with h heads uses the first h numbers.
        key_dims: Query and key channels of each head.
        window_sizes: Window size of the attention, in tokens.

    Raises:
        TypeError: A field is not a sequence of integers.
        ValueError: A field has the wrong length or an invalid value.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    key_dims: tuple[int, ...] = (16, 16, 16)
    window_sizes: tuple[int, ...] = (7, 7, 7)

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, self._integers(field.name))
        if self.embed_dims[0] % 8:
            raise ValueError(
                f'arch: embed_dims[0] must be a multiple of 8, got {self.embed_dims[0]}'
            )
        for stage, (dim, heads) in enumerate(zip(self.embed_dims, self.num_heads, strict=True)):
            if dim % heads:
                raise ValueError(
                    f'arch: num_heads[{stage}] = {heads} does not divide '
                    f'embed_dims[{stage}] = {dim}'
                )
        if len(self.kernel_sizes) < max(self.num_heads):
            raise ValueError(
                f'arch: kernel_sizes has {counted(len(self.kernel_sizes), "entry")}, '
                f'but a stage has {counted(max(self.num_heads), "head")}; give one kernel '
                'size per head'
            )
        even = [k for k in self.kernel_sizes if k % 2 == 0]
        if even:
            raise ValueError(f'arch: kernel_sizes must be odd, got {self.kernel_sizes}')

    def _integers(self, name: str) -> tuple[int, ...]:
        value = getattr(self, name)
        is_sequence = isinstance(value, (list, tuple))
        if not is_sequence or not all(isinstance(item, Integral) for item in value):
            raise TypeError(f'arch: {name} must be a sequence of integers, got {value!r}')
        if name != 'kernel_sizes' and len(value) != NUM_STAGES:
            raise ValueError(f'arch: {name} must have {NUM_STAGES} entries, got {value!r}')
        if not all(item > 0 for item in value):
            raise ValueError(f'arch: {name} must be positive, got {value!r}')
        return tuple(int(item) for item in value)


VARIANTS: dict[str, Variant] = {
    'm0': Variant((64, 128, 192), (1, 2, 3), (4, 4, 4), (5, 5, 5, 5)),
    'm1': Variant((128, 144, 192), (1, 2, 3), (2, 3, 3), (7, 5, 3, 3)),
    'm2': Variant((128, 192, 224), (1, 2, 3), (4, 3, 2), (7, 5, 3, 3)),
    'm3': Variant((128, 240, 320), (1, 2, 3), (4, 3, 4), (5, 5, 5, 5)),
    'm4': Variant((128, 256, 384), (1, 2, 3), (4, 4, 4), (7, 5, 3, 3)),
    'm5': Variant((192, 288, 384), (1, 3, 4), (3, 3, 4), (7, 5, 3, 3)),
}


def resolve_arch(arch: str | Mapping[str, Any] | Variant) -> Variant:
    """Return the :class:`Variant` for the ``arch`` argument of a config.

    Args:
        arch: A name in :data:`VARIANTS` (in upper or lower case), a mapping with the fields of
            :class:`Variant`, or a :class:`Variant`.

    Raises:
        KeyError: The name or a key of the mapping is unknown, or a required key is missing.
        TypeError: ``arch`` or a field has the wrong type.
        ValueError: A field has an invalid value.

    Example:
        >>> resolve_arch('m4').embed_dims
        (128, 256, 384)
        >>> tiny = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 2, 2),
        ...             kernel_sizes=(3, 3))
        >>> resolve_arch(tiny).window_sizes
        (7, 7, 7)
    """
    if isinstance(arch, Variant):
        return arch
    if isinstance(arch, str):
        if arch.lower() not in VARIANTS:
            raise KeyError(f"unknown arch '{arch}'; choose from {', '.join(VARIANTS)}")
        return VARIANTS[arch.lower()]
    if not isinstance(arch, Mapping):
        raise TypeError(f'arch must be a name or a dict, got {type(arch).__name__}')
    known = [field.name for field in fields(Variant)]
    needed = [field.name for field in fields(Variant) if field.default is MISSING]
    for key in arch:
        if key not in known:
            hint = did_you_mean(key, known)
            raise KeyError(f"arch: unknown key '{key}'{hint}; the keys are {', '.join(known)}")
    missing = [name for name in needed if name not in arch]
    if missing:
        raise KeyError(f'arch has no {", ".join(missing)}; add the missing keys')
    return Variant(**arch)
