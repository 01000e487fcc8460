"""From one kind of checkpoint to another: dict to dict, and what changed on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..models.attention import relative_offsets, resize_attention_biases
from .contents import metadata_of, plain_weights_of, tensors_of
from .names import ATTENTION_BIASES, BACKBONE, BIAS_INDICES, FAMILIES, to_timm
from .reading import METADATA_KEY, read_file
from .recognition import Recognised, recognise
from .sources import local_path
from .writing import check_target, write_checkpoint

TARGETS = ('backbone', 'detector', 'timm', 'msra')
DETECTOR_WINDOW = 7  # in every stage; the ImageNet files' last stage has 4
NUM_SHOWN = 3


@dataclass
class Conversion:
    """A converted checkpoint and what became of the old one's entries.

    Attributes:
        state: Tensors by their new names.
        meta: Class names and config text where there were any, under mmengine's keys, and what was
            converted.
        source: What the file was.
        target: One of :data:`TARGETS`.
        renamed: New name by old name, where they differ.
        dropped: Old names of what was left out.
        added: New names of what was made anew.
        resized: Old and new shape by new name.
    """

    state: dict[str, Tensor]
    meta: dict[str, Any]
    source: str
    target: str
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def summary(self) -> str:
        """Return what happened, a line per kind of change."""
        renamed = [f'{old} -> {new}' for old, new in self.renamed.items()]
        resized = [f'{name} {old} -> {new}' for name, (old, new) in self.resized.items()]
        if len(renamed) > NUM_SHOWN:
            renamed[NUM_SHOWN:] = ['...']
        changes = {
            f'renamed {len(self.renamed)}': renamed,
            f'dropped {len(self.dropped)}': _grouped(self.dropped),
            f'added {len(self.added)}': _grouped(self.added),
            f'resized {len(resized)}': resized,
        }
        lines = [f'{self.source} -> {self.target}, {len(self.state)} entries']
        for change, entries in changes.items():
            lines.append(f'{change}: {", ".join(entries)}' if entries else change)
        classes = self.meta.get('dataset_meta', {}).get('classes')
        lines.append(f'classes: {len(classes)}' if classes else 'classes: not in the file')
        return '\n'.join(lines)


def convert_file(source: str | Path, target: str | Path, to: str | None = None) -> Conversion:
    """Read, convert and write a checkpoint.

    Args:
        source: As in :func:`~evit_mm.checkpoint.read_checkpoint`.
        target: File to write, ``.pth``, ``.bin`` or ``.safetensors``.
        to: As in :func:`convert`.

    Returns:
        What was written.

    Raises:
        CheckpointError: The source cannot be read or is unknown, or the target cannot be written.
    """
    check_target(target)  # before anything is fetched
    path = local_path(source)
    check_target(target, path)
    converted = convert(read_file(path), to, str(source))
    # where the authors have their weights, so that their own code finds them
    key = 'model' if converted.target == 'msra' else 'state_dict'
    write_checkpoint(converted.state, target, converted.meta, key)
    return converted


def convert(checkpoint: Any, to: str | None = None, name: str = 'checkpoint') -> Conversion:
    """Convert what a file holds.

    Args:
        checkpoint: What :func:`~evit_mm.checkpoint.read_checkpoint` returned: a file of the
            authors, of timm, of mmdet 2 or 3, of a training here, or of SPOS. It stays as it is.
        to: ``'backbone'``: own names alone; ``'detector'``: the backbone as part of a detector,
            with windows of 7, and neck and head where the source has them; ``'timm'``: timm's
            names; ``'msra'``: the authors' ImageNet form. None is ``'detector'`` for a detector and
            ``'backbone'`` otherwise. Classifiers are kept in the last two.
        name: The file's name, for messages.

    Returns:
        The new tensors, and what was renamed, dropped, added and resized. Tensors of the first and
        the last kind are those of the source, not copies.

    Raises:
        CheckpointError: The file is of no known kind, or has no form of the wanted kind.
        ValueError: ``to`` is not among :data:`TARGETS`.
    """
    state = tensors_of(checkpoint, name)
    found = recognise(state, name)
    target = to or ('detector' if found.others else 'backbone')
    if target not in TARGETS:
        raise ValueError(f'to must be one of {", ".join(TARGETS)}, got {to!r}')
    if target in ('timm', 'msra') and found.family not in ('msra', 'timm'):
        raise CheckpointError(
            f"'{name}' is {found.description}, which has no form by the names of {target}; convert "
            'it to backbone or detector'
        )
    source = found.description
    if plain_weights_of(checkpoint):
        source += ', averaged over training (EMA)'
    what = {METADATA_KEY: {'from': source, 'to': target}}
    result = Conversion({}, {**metadata_of(checkpoint), **what}, source, target)
    _convert_body(found, result)
    if target == 'detector':
        result.state |= found.others
    else:
        result.dropped += found.others
    if target == 'msra':
        _add_bias_indices(found, result)
    else:
        result.dropped += found.bias_indices
    return result


def _convert_body(found: Recognised, result: Conversion) -> None:
    rename: Callable[[str], str] = {
        'timm': to_timm,
        'detector': lambda key: BACKBONE + key,
    }.get(result.target, str)
    keeps_classifier = result.target in ('timm', 'msra')
    for key, value in found.body.items():
        old = found.old_names[key]
        if not keeps_classifier and key.startswith(FAMILIES[found.family].classifier):
            result.dropped.append(old)
            continue
        new = rename(key)
        if result.target == 'detector' and key.endswith(ATTENTION_BIASES):
            before = tuple(value.shape)
            value = resize_attention_biases(value, DETECTOR_WINDOW)
            if tuple(value.shape) != before:
                result.resized[new] = (before, tuple(value.shape))
        result.state[new] = value
        if new != old:
            result.renamed[old] = new


def _add_bias_indices(found: Recognised, result: Conversion) -> None:
    """Make the index buffers that the authors' code loads strictly."""
    for key, value in found.body.items():
        if key.endswith(ATTENTION_BIASES):
            name = key.removesuffix(ATTENTION_BIASES) + BIAS_INDICES
            result.state[name] = relative_offsets(round(value.shape[1] ** 0.5))
            if not found.bias_indices:
                result.added.append(name)


def _grouped(names: list[str]) -> list[str]:
    """Return ``head.* (6)`` and the like."""
    groups = Counter(
        f'*.{BIAS_INDICES}' if name.endswith(BIAS_INDICES) else f'{name.split(".")[0]}.*'
        for name in names
    )
    return [f'{group} ({count})' for group, count in groups.items()]
