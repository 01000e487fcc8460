"""The names that other people's files give to the same tensors, and the way between them.

Own names are those of the authors' files (EfficientViT) and of megvii's (SPOS). Pure functions on
strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BACKBONE = 'backbone.'  # before the backbone's names in a detector
ATTENTION_BIASES = 'attention_biases'
BIAS_INDICES = 'attention_bias_idxs'  # the authors' buffer, which follows from the window size
DOWNSAMPLE = ('res1', 'patchmerge', 'res2')  # timm's names of a stage's first three entries
TO_TIMM = {'c': 'conv', 'l': 'linear'}
FROM_TIMM = {timm: own for own, timm in TO_TIMM.items()}


@dataclass(frozen=True)
class Family:
    """One kind of names."""

    description: str  # what files with them are, for people
    signature: str  # a name that no other family has
    classifier: tuple[str, ...]  # what the names of a classifier's own entries begin with


FAMILIES = {
    'msra': Family("EfficientViT with the authors' names", 'patch_embed.0.c.weight', ('head.',)),
    'timm': Family("EfficientViT with timm's names", 'patch_embed.conv1.conv.weight', ('head.',)),
    'spos': Family(
        "SPOS with megvii's names", 'first_conv.0.weight', ('conv_last.', 'classifier.')
    ),
    'mobile': Family(
        'a timm mobile network', 'conv_stem.weight', ('conv_head.', 'bn2.', 'classifier.')
    ),
}


def family_of(names: Mapping[str, Any]) -> str | None:
    """Return the key of :data:`FAMILIES` that a backbone's names belong to, or None."""
    return next((key for key, family in FAMILIES.items() if family.signature in names), None)


def to_timm(name: str) -> str:
    """Turn an own name of EfficientViT into timm's.

    Example:
        >>> to_timm('blocks2.3.mixer.m.attn.qkvs.0.c.weight')
        'stages.1.blocks.0.mixer.m.attn.qkvs.0.conv.weight'
    """
    match name.split('.'):
        case ['patch_embed', index, *rest]:
            place = ['patch_embed', f'conv{int(index) // 2 + 1}']  # a ReLU lies between two
        case ['blocks1', index, *rest]:
            place = ['stages', '0', 'blocks', index]
        case ['blocks2' | 'blocks3' as stage, index, *rest]:
            place = ['stages', str(int(stage[-1]) - 1)]
            if int(index) < len(DOWNSAMPLE):
                place += ['downsample', DOWNSAMPLE[int(index)]]
            else:
                place += ['blocks', str(int(index) - len(DOWNSAMPLE))]
        case [first, *rest]:
            place = [first]
    return '.'.join([*place, *(TO_TIMM.get(part, part) for part in rest)])


def from_timm(name: str) -> str:
    """Turn timm's name of an EfficientViT tensor into the own one.

    Example:
        >>> from_timm('stages.1.downsample.patchmerge.conv1.conv.weight')
        'blocks2.1.conv1.c.weight'
    """
    match name.split('.'):
        case ['patch_embed', conv, *rest]:
            place = ['patch_embed', str(2 * int(conv.removeprefix('conv')) - 2)]
        case ['stages', '0', 'blocks', index, *rest]:
            place = ['blocks1', index]
        case ['stages', stage, 'downsample', part, *rest]:
            place = [f'blocks{int(stage) + 1}', str(DOWNSAMPLE.index(part))]
        case ['stages', stage, 'blocks', index, *rest]:
            place = [f'blocks{int(stage) + 1}', str(int(index) + len(DOWNSAMPLE))]
        case [first, *rest]:
            place = [first]
    return '.'.join([*place, *(FROM_TIMM.get(part, part) for part in rest)])
