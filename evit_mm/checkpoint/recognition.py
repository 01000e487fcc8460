"""Recognise a checkpoint from its names and shapes.

The names determine the family, and the shapes determine the network. The network is built on the
meta device and compared with every name and shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..models import VARIANTS, EfficientViT, EfficientViTHead, SPOSHead, SPOSNet
from ..models.spos import DEPTHS, KERNEL_SIZES, XCEPTION
from ..models.variants import NUM_STAGES, Variant
from .contents import own_names
from .fitting import check_entries
from .names import ATTENTION_BIASES, BACKBONE, BIAS_INDICES, FAMILIES, family_of

HEAD = ('head.bn.', 'head.l.')  # prefixes of the classification head
MAX_WINDOW = 32  # larger than any window of a trained EfficientViT
NUM_SHOWN = 3


@dataclass(frozen=True)
class Recognised:
    """A recognised state dict.

    Attributes:
        family: A key of :data:`~evit_mm.checkpoint.names.FAMILIES`.
        description: A phrase for messages, for example ``"EfficientViT-M4, EfficientViT with timm's
            names"``.
        own_names: Name in this package by name in the file, for the backbone and the classifier.
            The neck and the head of a detector are not included.
    """

    family: str
    description: str
    own_names: dict[str, str]


def recognise(state: Mapping[str, Tensor], name: str) -> Recognised:
    """Recognise a state dict, or raise a CheckpointError that lists the differences."""
    prefix = BACKBONE if any(key.startswith(BACKBONE) for key in state) else ''
    parts = (prefix, *HEAD) if prefix else ('',)
    names = {key.removeprefix(prefix): key for key in state if key.startswith(parts)}
    family = family_of(names)
    if family is None:
        known = [f"{kind.description} ('{kind.signature}')" for kind in FAMILIES.values()]
        raise CheckpointError(
            f"'{name}' is of an unknown kind: its first entries are "
            f'{", ".join(list(state)[:NUM_SHOWN])}. Use a checkpoint of one of these kinds: '
            f'{", ".join(known)}'
        )
    names = own_names(names, name)
    body = {own: state[key] for own, key in names.items() if not own.endswith(BIAS_INDICES)}
    description = FAMILIES[family].description
    if family != 'mobile':  # the variant of a mobile network is not determined
        description = f'{_check_network(body, family, name)}, {description}'
    if len(names) < len(state):
        description = f'detector with {description}'
    return Recognised(family, description, {key: own for own, key in names.items()})


def _check_network(body: Mapping[str, Tensor], family: str, name: str) -> str:
    """Return the name of the network with these shapes, after comparing every entry with it."""
    build = _spos if family == 'spos' else _efficientvit
    try:
        with torch.device('meta'):
            network, modules = build(body)
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        kind = FAMILIES[family].description
        raise CheckpointError(
            f"'{name}' is {kind}, but its shapes match no network: {error!r}"
        ) from None
    expected = {k: v for module in modules for k, v in module.state_dict().items()}
    check_entries(body, expected, network, name)
    return network


def variant_of(state: Mapping[str, Tensor]) -> Variant:
    """Return the architecture of an EfficientViT state dict.

    Missing last stages get the values of the last stage that exists. A LookupError, TypeError or
    ValueError means that the shapes match no architecture.
    """
    rows = []
    for stage in range(1, NUM_STAGES + 1):
        blocks = {key.split('.')[1] for key in state if key.startswith(f'blocks{stage}.')}
        if not blocks:
            break
        first = 0 if stage == 1 else 3  # index of the first block after the subsampling
        block = f'blocks{stage}.{first}'
        dim = state[f'{block}.dw0.m.c.weight'].shape[0]
        heads, num_offsets = state[f'{block}.mixer.m.attn.{ATTENTION_BIASES}'].shape
        window = math.isqrt(num_offsets)
        if window > MAX_WINDOW:
            raise ValueError(f'window size {window} is larger than {MAX_WINDOW}')
        queries = [state[f'{block}.mixer.m.attn.dws.{i}.c.weight'].shape for i in range(heads)]
        kernels = tuple(query[-1] for query in queries)
        rows.append((dim, len(blocks) - first, heads, kernels, queries[0][0], window))
    rows += rows[-1:] * (NUM_STAGES - len(rows))
    dims, depths, num_heads, kernel_sizes, key_dims, windows = zip(*rows, strict=True)
    longest = max(kernel_sizes, key=len)  # a stage with h heads uses the first h
    return Variant(dims, depths, num_heads, longest, key_dims, windows)


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
    """Return the key of an architecture in :data:`~evit_mm.models.VARIANTS`, or None.

    Window sizes and the kernel sizes that no head uses are ignored.
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
    if 'conv_last.0.weight' in state:
        last = len(DEPTHS)
    else:
        last = list(accumulate(DEPTHS)).index(len(blocks))  # the stage that the blocks fill
    modules: list[nn.Module] = [SPOSNet(choices, out_indices=(last,))]
    if 'classifier.0.weight' in state:
        modules.append(SPOSHead(len(state['classifier.0.weight'])))
    return f'SPOS (choices={choices})', modules
