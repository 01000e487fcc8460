"""From one kind of checkpoint to another: dict to dict, and what changed on the way."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..models.attention import relative_offsets, resize_attention_biases
from .contents import metadata_of, plain_weights_of, tensors_of
from .names import ATTENTION_BIASES, BACKBONE, BIAS_INDICES, FAMILIES, to_timm
from .reading import METADATA_KEY, read_file
from .recognition import recognise
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
        changes = {
            'renamed': [f'{old} -> {new}' for old, new in self.renamed.items()],
            'dropped': self.dropped,
            'added': self.added,
            'resized': [f'{name} {old} -> {new}' for name, (old, new) in self.resized.items()],
        }
        lines = [f'{self.source} -> {self.target}, {len(self.state)} entries']
        for change, entries in changes.items():
            more = ['...'] if len(entries) > NUM_SHOWN else []
            shown = ', '.join(entries[:NUM_SHOWN] + more)
            lines.append(f'{change} {len(entries)}: {shown}' if entries else f'{change} 0')
        classes = self.meta.get('dataset_meta', {}).get('classes')
        lines.append(f'classes: {len(classes)}' if classes else 'classes: none in the file')
        return '\n'.join(lines)


def convert_file(source: str | Path, target: str | Path, to: str | None = None) -> Conversion:
    """Read a checkpoint from anywhere, see :func:`convert`, and write it by its new suffix."""
    check_target(target)  # before anything is fetched
    path = local_path(source)
    if os.path.realpath(path) == os.path.realpath(target):
        raise CheckpointError(f"'{target}' is the input file; choose another output file")
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
        The new tensors, and what was renamed, dropped, added and resized. Tensors that are not
        resized are those of the source, not copies.

    Raises:
        CheckpointError: The file is of no known kind, or has no form of the wanted kind.
        ValueError: ``to`` is not among :data:`TARGETS`.
    """
    state = tensors_of(checkpoint, name)
    found = recognise(state, name)
    target = to or ('detector' if len(found.own_names) < len(state) else 'backbone')
    if target not in TARGETS:
        raise ValueError(f'to must be one of {", ".join(TARGETS)}, got {to!r}')
    if target in ('timm', 'msra') and found.family not in ('msra', 'timm'):
        raise CheckpointError(
            f"'{name}' is {found.description}, which cannot be converted to {target}; convert it "
            'to backbone or detector'
        )

    source = found.description
    if plain_weights_of(checkpoint):
        source += ', EMA weights'
    meta = {**metadata_of(checkpoint), METADATA_KEY: {'from': source, 'to': target}}
    result = Conversion({}, meta, source, target)

    for old, value in state.items():
        new = _new_name(old, found.own_names.get(old), FAMILIES[found.family].classifier, target)
        if new is None:
            result.dropped.append(old)
            continue
        if target == 'detector' and new.startswith(BACKBONE) and new.endswith(ATTENTION_BIASES):
            resized = resize_attention_biases(value, DETECTOR_WINDOW)
            if resized is not value:
                result.resized[new] = (tuple(value.shape), tuple(resized.shape))
            value = resized
        if new != old:
            result.renamed[old] = new
        result.state[new] = value
    if target == 'msra':
        _add_bias_indices(result)
    return result


def _new_name(old: str, own: str | None, classifier: tuple[str, ...], target: str) -> str | None:
    """Return the new name of an entry, None if it is left out; ``own`` is None in neck and head."""
    if own is None:
        return old if target == 'detector' else None
    if own.endswith(BIAS_INDICES):
        return None  # they are made anew where they are wanted
    if own.startswith(classifier) and target not in ('timm', 'msra'):
        return None
    if target == 'timm':
        return to_timm(own)
    return BACKBONE + own if target == 'detector' else own


def _add_bias_indices(result: Conversion) -> None:
    """Make the index buffers that the authors' code loads strictly."""
    for name, biases in list(result.state.items()):
        if name.endswith(ATTENTION_BIASES):
            buffer = name.removesuffix(ATTENTION_BIASES) + BIAS_INDICES
            result.added.append(buffer)
            result.state[buffer] = relative_offsets(round(biases.shape[1] ** 0.5))
