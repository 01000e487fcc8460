"""Translate tensor names between this package and other sources.

This package uses the authors' names for EfficientViT and megvii's names for SPOS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BACKBONE = 'backbone.'  # prefix of the backbone in a detector
ATTENTION_BIASES = 'attention_biases'
BIAS_INDICES = 'attention_bias_idxs'  # the authors' buffer, which depends only on the window size
DOWNSAMPLE = ('res1', 'patchmerge', 'res2')  # timm's names of the first three modules of a stage
TO_TIMM = {'c': 'conv', 'l': 'linear'}
FROM_TIMM = {timm: own for own, timm in TO_TIMM.items()}


@dataclass(frozen=True)
class Family:
    """A naming scheme."""

    description: str  # for messages
    signature: str  # a name that no other family has
    classifier: tuple[str, ...]  # prefixes of the classifier


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
    """Return the key in :data:`FAMILIES` for the names of a backbone, or None."""
    return next((key for key, family in FAMILIES.items() if family.signature in names), None)


def to_timm(name: str) -> str:
    """Return timm's name of an EfficientViT tensor.

    Example:
        >>> to_timm('blocks2.3.mixer.m.attn.qkvs.0.c.weight')
        'stages.1.blocks.0.mixer.m.attn.qkvs.0.conv.weight'
    """
    match name.split('.'):
        case ['patch_embed', index, *rest]:
            place = ['patch_embed', f'conv{int(index) // 2 + 1}']  # odd indices are ReLUs
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
    """Return the name in this package for timm's name of an EfficientViT tensor.

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
