"""The names that other people's files give to the same tensors, and the way between them.

Own names are those of the authors' files (EfficientViT) and of megvii's (SPOS). Pure functions on
strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BACKBONE = 'backbone.'  # before the backbone's names in a detector
ATTENTION_BIASES = 'attention_biases'
BIAS_INDICES = 'attention_bias_idxs'  # the authors' buffer, which follows from the window size
DOWNSAMPLE = ('res1', 'patchmerge', 'res2')  # timm's names of a stage's first three entries
TO_TIMM = {'c': 'conv', 'l': 'linear'}
FROM_TIMM = {timm: own for own, timm in TO_TIMM.items()}
# one name per family of files that no other family has
SIGNATURES = {
    'msra': 'patch_embed.0.c.weight',
    'timm': 'patch_embed.conv1.conv.weight',
    'spos': 'first_conv.0.weight',
    'mobile': 'conv_stem.weight',
}
DESCRIPTIONS = {
    'msra': "EfficientViT by the authors' names",
    'timm': "EfficientViT by timm's names",
    'spos': "SPOS by megvii's names",
    'mobile': 'a mobile network of timm',
}


def family_of(names: Mapping[str, Any]) -> str | None:
    """Return the key of :data:`SIGNATURES` that a backbone's names belong to, None for none."""
    for family, signature in SIGNATURES.items():
        if signature in names:
            return family
    return None


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
            down = int(index) < len(DOWNSAMPLE)
            place += (
                ['downsample', DOWNSAMPLE[int(index)]]
                if down
                else ['blocks', str(int(index) - len(DOWNSAMPLE))]
            )
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
