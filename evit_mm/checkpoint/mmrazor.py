"""mmrazor's SPOS as the network that :class:`evit_mm.models.SPOSNet` builds with ``balanced``.

mmrazor chunks the channels into halves and shuffles them after each block, where megvii splits them
into even and odd ones. Up to the order of channels this is the same: in mmrazor a channel born at
the odd position q moves to 2q, 4q, ... until it reaches the second half and is used up, in megvii
it is born there and moves down by halves. So q * 2**t in the one is q * 2**(k - t) in the other,
where q * 2**k is the end of the way, in every block alike. Weights need only be put in that order.

Shapes: C channels of a block's output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from .reading import first_line

STAGE_DEPTHS = (4, 4, 8, 4)
# mmrazor's operations and their numbers in megvii's search space
CHOICES = {'shuffle_3x3': 0, 'shuffle_5x5': 1, 'shuffle_7x7': 2, 'shuffle_xception': 3}
XCEPTION = CHOICES['shuffle_xception']
# the name of what holds the operations has changed over mmrazor's versions
BLOCK = re.compile(
    r'layers\.(\d+)\.(\d+)\.(?:_candidates|_candidate_ops|candidates|choices)\.(\w+)\.(.+)'
)
OUTSIDE = {
    'conv1.conv': 'first_conv.0',
    'conv1.bn': 'first_conv.1',
    'layers.4.conv': 'conv_last.0',
    'layers.4.bn': 'conv_last.1',
    'head.fc': 'classifier.0',
}
# a branch's modules and the numbers of their convolutions in megvii's names; BatchNorm follows
PROJECTION = {'branch1.0': 0, 'branch1.1': 2}
SHUFFLE = {'branch2.0': 0, 'branch2.1': 3, 'branch2.2': 5}
XCEPTION_MAIN = {
    f'branch2.{k}.{kind}_conv': 5 * k + place
    for k in range(3)
    for place, kind in ((0, 'depthwise'), (2, 'pointwise'))
}


def from_mmrazor(state: Mapping[str, Tensor], name: str = 'checkpoint') -> dict[str, Tensor]:
    """Turn a retrained subnet of mmrazor into megvii's names and order of channels.

    Args:
        state: Tensors by mmrazor's names, from ``conv1.conv.weight`` on.
        name: The file's name, for messages.

    Returns:
        The tensors that ``SPOSNet(choices=choices_of(state), balanced=True)`` takes. The network
        computes mmrazor's stages with their channels in another order, and mmrazor's logits.

    Raises:
        CheckpointError: The file is a supernet, or a name or shape is unknown.
    """
    choices_of(state, name)  # refuses a supernet
    renamed = {_renamed(key, name): value for key, value in state.items()}
    try:
        return _reordered(renamed)
    except (KeyError, IndexError, RuntimeError) as error:
        raise CheckpointError(
            f"'{name}' is by mmrazor's names, but tensors lack or have other shapes "
            f'({first_line(error)})'
        ) from None


def choices_of(state: Mapping[str, Tensor], name: str = 'checkpoint') -> tuple[int, ...]:
    """Return the choice at each of the 20 places, as :class:`evit_mm.models.SPOSNet` takes them.

    Raises:
        CheckpointError: A place has no or several operations, as in a supernet.
    """
    found: dict[int, set[int]] = {}
    for key in state:
        match = BLOCK.fullmatch(key)
        if match and match[3] in CHOICES:
            found.setdefault(_place(match), set()).add(CHOICES[match[3]])
    if sorted(found) != list(range(sum(STAGE_DEPTHS))) or any(len(c) > 1 for c in found.values()):
        raise CheckpointError(
            f"'{name}' is by mmrazor's names but has not one operation at each of 20 places: a "
            'supernet or another space; export the subnet with mmrazor first'
        )
    return tuple(found[place].pop() for place in sorted(found))


def channel_order(channels: int) -> Tensor:
    """Return which of mmrazor's channels stands at each place of megvii's order.

    Args:
        channels: C, a multiple of 4.

    Returns:
        ``(C,)`` int64; a permutation that is its own inverse.
    """
    order = [0]
    for place in range(1, channels):
        odd = place // (place & -place)
        last = odd  # of the way odd, 2 * odd, ... inside C
        while 2 * last < channels:
            last *= 2
        order.append(odd * last // place)
    return torch.tensor(order)


def _place(match: re.Match[str]) -> int:
    return sum(STAGE_DEPTHS[: int(match[1])]) + int(match[2])


def _renamed(key: str, name: str) -> str:
    module, _, entry = key.rpartition('.')
    if module in OUTSIDE:
        return f'{OUTSIDE[module]}.{entry}'
    match = BLOCK.fullmatch(key)
    if match and match[3] in CHOICES:
        main = XCEPTION_MAIN if CHOICES[match[3]] == XCEPTION else SHUFFLE
        inner, _, layer = match[4].rpartition('.')[0].rpartition('.')
        for branch, numbers in (('branch_proj', PROJECTION), ('branch_main', main)):
            if inner in numbers and layer in ('conv', 'bn'):
                number = numbers[inner] + (layer == 'bn')
                return f'features.{_place(match)}.{branch}.{number}.{entry}'
    raise CheckpointError(f"'{name}' is by mmrazor's names, but '{key[:200]}' is unknown")


def _reordered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put every block's inputs and outputs, and the last convolution's inputs, in order."""
    state = dict(state)
    before = torch.arange(len(state['first_conv.0.weight']))
    place = 0
    for depth in STAGE_DEPTHS:
        for index in range(depth):
            block = f'features.{place}.'
            xception = f'{block}branch_main.12.weight' in state
            last = 12 if xception else 5
            half = len(state[f'{block}branch_main.{last}.weight'])
            order = channel_order(2 * half)
            if index == 0:
                inputs = before
                _permute(state, f'{block}branch_proj', (0, 1), 0, inputs)
                _permute(state, f'{block}branch_proj', (2,), 1, inputs)
                _permute(state, f'{block}branch_proj', (2, 3), 0, order[:half] // 2)
            else:  # the odd places hold what mmrazor has in its second half
                inputs = order[1::2] - half
            if xception:  # the depthwise convolution comes first
                _permute(state, f'{block}branch_main', (0, 1), 0, inputs)
            _permute(state, f'{block}branch_main', (2 if xception else 0,), 1, inputs)
            _permute(state, f'{block}branch_main', (last, last + 1), 0, order[half:] // 2)
            before = order
            place += 1
    if 'conv_last.0.weight' in state:
        state['conv_last.0.weight'] = state['conv_last.0.weight'][:, before]
    return state


def _permute(
    state: dict[str, Tensor], branch: str, numbers: tuple[int, ...], dim: int, order: Tensor
) -> None:
    for number in numbers:
        for key in [k for k in state if k.startswith(f'{branch}.{number}.')]:
            if state[key].ndim:  # not BatchNorm's counter
                state[key] = state[key].index_select(dim, order)
