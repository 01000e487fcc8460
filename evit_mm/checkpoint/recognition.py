"""What a checkpoint is, seen from its names and shapes.

The names settle the family, the shapes the network: it is built without memory, and every name and
shape is compared with it. w window side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models import VARIANTS, EfficientViT, EfficientViTHead, SPOSHead, SPOSNet
from ..models.spos import DEPTHS, KERNEL_SIZES, XCEPTION
from ..models.variants import NUM_STAGES, Variant
from .contents import own_names
from .names import ATTENTION_BIASES, BACKBONE, BIAS_INDICES, FAMILIES, family_of, to_timm

HEAD = ('head.bn.', 'head.l.')
MAX_WINDOW = 32  # beyond any image size that EfficientViT is trained with
NUM_SHOWN = 5
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recognised:
    """A checkpoint taken apart.

    Attributes:
        family: The kind of its names, a key of :data:`~evit_mm.checkpoint.names.FAMILIES`.
        network: The network that its shapes imply, such as ``'EfficientViT-M4'``.
        body: Backbone and classifier by own names, without the authors' index buffers.
        others: The rest of a detector, names as they are.
        old_names: The name in the file of every entry of ``body``.
        bias_indices: The index buffers' names in the file.
    """

    family: str
    network: str
    body: dict[str, Tensor]
    others: dict[str, Tensor]
    old_names: dict[str, str]
    bias_indices: list[str]

    @property
    def description(self) -> str:
        """One phrase for people."""
        whole = 'detector with ' if self.others else ''
        return f'{whole}{self.network}, {FAMILIES[self.family].description}'


def recognise(state: Mapping[str, Tensor], name: str = 'checkpoint') -> Recognised:
    """Tell what a state dict is.

    Args:
        state: What :func:`~evit_mm.checkpoint.tensors_of` returned.
        name: The file's name, for messages.

    Raises:
        CheckpointError: It is nothing that is known here; the nearest match is named, with the
            first names that differ.
    """
    prefix = BACKBONE if any(key.startswith(BACKBONE) for key in state) else ''
    parts = (prefix, *HEAD) if prefix else ('',)
    own_part = {key.removeprefix(prefix): key for key in state if key.startswith(parts)}
    family = family_of(own_part)
    if family is None:
        raise _unknown(own_part, name)
    renamed = own_names({key: state[old] for key, old in own_part.items()}, name)
    old_names = dict(zip(renamed, own_part.values(), strict=True))
    body = {key: value for key, value in renamed.items() if not key.endswith(BIAS_INDICES)}
    network, expected = _network_of(body, family)
    if network is None:
        raise _unknown(own_part, name)
    if expected is not None:
        _compare({key: tuple(value.shape) for key, value in body.items()}, expected, network, name)
    return Recognised(
        family=family,
        network=network,
        body=body,
        others={key: value for key, value in state.items() if not key.startswith(parts)},
        old_names={key: old for key, old in old_names.items() if key in body},
        bias_indices=[old for key, old in old_names.items() if key not in body],
    )


def variant_of(state: Mapping[str, Tensor]) -> Variant:
    """Return the architecture of an EfficientViT by own names; stages it lacks are as the last.

    Raises:
        KeyError: An entry that tells a size is missing.
        TypeError: The sizes are no architecture.
        ValueError: The sizes are no architecture.
        IndexError: A tensor has too few dimensions.
    """
    rows = []
    for stage in range(1, NUM_STAGES + 1):
        prefix, first = f'blocks{stage}.', 0 if stage == 1 else 3  # after the down-sampling
        indices = {key.split('.')[1] for key in state if key.startswith(prefix)}
        if not indices:
            break
        attention = f'{prefix}{first}.mixer.m.attn'
        queries = _numbered(state, f'{attention}.dws.', '.c.weight')
        side = math.isqrt(state[f'{attention}.{ATTENTION_BIASES}'].shape[1])
        if side > MAX_WINDOW:
            raise ValueError(f'windows of {side} x {side}')
        dim = state[f'{prefix}{first}.dw0.m.c.weight'].shape[0]
        rows.append((dim, len(indices) - first, queries, queries[0].shape[0], side))
    rows += rows[-1:] * (NUM_STAGES - len(rows))
    dims, depths, queries_of, key_dims, sides = zip(*rows, strict=True)
    kernels = max(queries_of, key=len)
    return Variant(
        embed_dims=dims,
        depths=depths,
        num_heads=tuple(map(len, queries_of)),
        kernel_sizes=tuple(query.shape[-1] for query in kernels),
        key_dims=key_dims,
        window_sizes=sides,
    )


def _numbered(state: Mapping[str, Tensor], before: str, after: str) -> list[Tensor]:
    found: list[Tensor] = []
    while f'{before}{len(found)}{after}' in state:
        found.append(state[f'{before}{len(found)}{after}'])
    return found


def _network_of(state: Mapping[str, Tensor], family: str) -> tuple[str | None, Shapes | None]:
    """Return the network's name and what it holds; (None, None) if the shapes imply none."""
    if family == 'mobile':
        return FAMILIES[family].description, None  # its name alone says what it holds
    build = _efficientvit if family in ('msra', 'timm') else _spos
    try:
        with torch.device('meta'):
            network, modules = build(state)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OverflowError):
        return None, None
    return network, _shapes(modules)


def _efficientvit(state: Mapping[str, Tensor]) -> tuple[str, list[nn.Module]]:
    variant = variant_of(state)
    stages = len({key.split('.')[0] for key in state if key.startswith('blocks')})
    in_channels = state['patch_embed.0.c.weight'].shape[1]
    modules: list[nn.Module] = [EfficientViT(variant, in_channels, out_indices=(stages - 1,))]
    if any(key.startswith('head.') for key in state):
        modules.append(EfficientViTHead(variant.embed_dims[-1], len(state['head.l.weight'])))
    name = variant_name(variant)
    return f'EfficientViT-{name.upper()}' if name else 'EfficientViT of another size', modules


def variant_name(variant: Variant) -> str | None:
    """Return the key of :data:`~evit_mm.models.VARIANTS` of an architecture, whatever its windows.

    Kernels that no head uses do not count either; checkpoints do not have them.
    """

    def essence(v: Variant) -> Variant:
        return replace(v, window_sizes=(7, 7, 7), kernel_sizes=v.kernel_sizes[: max(v.num_heads)])

    same = (name for name, known in VARIANTS.items() if essence(known) == essence(variant))
    return next(same, None)


def _spos(state: Mapping[str, Tensor]) -> tuple[str, list[nn.Module]]:
    blocks = {int(key.split('.')[1]) for key in state if key.startswith('features.')}
    choices = [0] * sum(DEPTHS)
    for place in blocks:
        main = f'features.{place}.branch_main.'
        if f'{main}12.weight' in state:
            choices[place] = XCEPTION
        else:
            choices[place] = KERNEL_SIZES.index(state[f'{main}3.weight'].shape[-1])
    stages = len(DEPTHS) if 'conv_last.0.weight' in state else _stages_of(len(blocks)) - 1
    modules: list[nn.Module] = [SPOSNet(choices, out_indices=(stages,))]
    if 'classifier.0.weight' in state:
        modules.append(SPOSHead(len(state['classifier.0.weight'])))
    return f'SPOS (choices={choices})', modules


def _stages_of(num_blocks: int) -> int:
    return [sum(DEPTHS[:stages]) for stages in range(len(DEPTHS) + 1)].index(num_blocks)


def _shapes(modules: Iterable[nn.Module]) -> Shapes:
    return {k: tuple(v.shape) for module in modules for k, v in module.state_dict().items()}


def _compare(found: Shapes, expected: Shapes, network: str, name: str) -> None:
    # BatchNorm's counters may be absent
    absent = [
        key for key in expected if key not in found and not key.endswith('num_batches_tracked')
    ]
    more = [key for key in found if key not in expected]
    other = [
        f'{key} {found[key]} instead of {expected[key]}'
        for key in found
        if key in expected and found[key] != expected[key]
    ]
    if absent or more or other:
        share = f'{len(found) - len(more) - len(other)} of {len(expected)} entries agree'
        raise _mismatch(name, f'{network} ({share})', absent, more, other)


def _unknown(found: Mapping[str, str], name: str) -> CheckpointError:
    """Compare the names with all that is known, and report the nearest."""
    with torch.device('meta'):
        spos: list[nn.Module] = [SPOSNet(out_indices=(4,)), SPOSHead()]
        listings = {'SPOS by megvii': list(_shapes(spos))}
        for arch, variant in VARIANTS.items():
            head = EfficientViTHead(variant.embed_dims[-1])
            names = list(_shapes([EfficientViT(variant), head]))
            listings[f'EfficientViT-{arch.upper()} by the authors'] = names
            listings[f'EfficientViT-{arch.upper()} by timm'] = [to_timm(key) for key in names]
    needed = {
        label: [key for key in names if not key.endswith('num_batches_tracked')]
        for label, names in listings.items()
    }
    given = [k for k in found if not k.endswith(('num_batches_tracked', BIAS_INDICES))]
    common = {label: len(set(given) & set(names)) for label, names in needed.items()}
    nearest = max(needed, key=lambda label: common[label] / len({*given, *needed[label]}))
    absent = [key for key in needed[nearest] if key not in set(given)]
    more = [key for key in given if key not in set(needed[nearest])]
    share = f'{common[nearest]} of {len(needed[nearest])} names agree'
    return _mismatch(name, f'{nearest} ({share})', absent, more, [])


def _mismatch(
    name: str, nearest: str, absent: list[str], more: list[str], other: list[str]
) -> CheckpointError:
    lines = []
    for label, names in (('missing', absent), ('unexpected', more), ('shape', other)):
        if names:
            rest = f' and {len(names) - NUM_SHOWN} more' if len(names) > NUM_SHOWN else ''
            lines.append(f'\n  {label}: {", ".join(names[:NUM_SHOWN])}{rest}')
    return CheckpointError(
        f"'{name}' is of no kind that is known here; the nearest is {nearest}{''.join(lines)}"
    )
