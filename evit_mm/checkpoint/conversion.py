"""Convert checkpoints from one kind to another, and report the changes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..models.attention import relative_offsets, resize_attention_biases
from ..utils.text import counted
from .contents import metadata_of, plain_weights_of, tensors_of
from .names import ATTENTION_BIASES, BACKBONE, BIAS_INDICES, FAMILIES, to_timm
from .reading import METADATA_KEY, read_file
from .recognition import recognise
from .sources import local_path
from .writing import check_target, write_checkpoint

TARGETS = ('backbone', 'detector', 'timm', 'msra')
DETECTOR_WINDOW = 7  # in every stage. The last stage of the ImageNet checkpoints has window size 4.
NUM_SHOWN = 3


@dataclass
class Conversion:
    """A converted checkpoint and a record of the changes.

    Attributes:
        state: Tensors by new name.
        meta: Class names and config text under mmengine's keys, if the source has them, and the
            source and target of the conversion.
        source: Description of the source.
        target: One of :data:`TARGETS`.
        renamed: New name by old name, for the names that changed.
        dropped: Old names of removed entries.
        added: New names of created entries.
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
        """Return a summary with one line per kind of change."""
        changes = {
            'renamed': [f'{old} -> {new}' for old, new in self.renamed.items()],
            'dropped': self.dropped,
            'added': self.added,
            'resized': [f'{name} {old} -> {new}' for name, (old, new) in self.resized.items()],
        }
        lines = [f'{self.source} -> {self.target}, {counted(len(self.state), "entry")}']
        for change, entries in changes.items():
            more = ['...'] if len(entries) > NUM_SHOWN else []
            shown = ', '.join(entries[:NUM_SHOWN] + more)
            lines.append(f'{change} {len(entries)}: {shown}' if entries else f'{change} 0')
        classes = self.meta.get('dataset_meta', {}).get('classes')
        lines.append(f'classes: {len(classes)}' if classes else 'classes: not in the file')
        return '\n'.join(lines)


def convert_file(source: str | Path, target: str | Path, to: str | None = None) -> Conversion:
    """Read a checkpoint, convert it with :func:`convert`, and write it.

    The suffix of ``target`` selects the file format.
    """
    check_target(target)  # before the download
    path = local_path(source)
    if os.path.realpath(path) == os.path.realpath(target):
        raise CheckpointError(f"'{target}' is the input file; choose another output file")
    converted = convert(read_file(path), to, str(source))
    # the authors' code reads its weights from 'model'
    key = 'model' if converted.target == 'msra' else 'state_dict'
    write_checkpoint(converted.state, target, converted.meta, key)
    return converted


def convert(checkpoint: Any, to: str | None = None, name: str = 'checkpoint') -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: The result of :func:`~evit_mm.checkpoint.read_checkpoint`, for a file of the
            authors, timm, mmdet 2 or 3, this package, or SPOS. It is not modified.
        to: The target. ``'backbone'`` is the backbone with the names of this package.
            ``'detector'`` is the backbone as part of a detector with window size 7, and the neck
            and head if the source has them. ``'timm'`` has timm's names. ``'msra'`` is the authors'
            ImageNet format. Only ``'timm'`` and ``'msra'`` keep a classifier. None selects
            ``'detector'`` for a detector and ``'backbone'`` otherwise.
        name: File name for error messages.

    Returns:
        The new tensors, and the renamed, dropped, added and resized entries. Tensors that are not
        resized are not copied.

    Raises:
        CheckpointError: The kind of the checkpoint is unknown, or it cannot be converted to the
            target.
        ValueError: ``to`` is not in :data:`TARGETS`.
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
    """Return the new name of an entry, or None to drop it. ``own`` is None in neck and head."""
    if own is None:
        return old if target == 'detector' else None
    if own.endswith(BIAS_INDICES):
        return None  # _add_bias_indices creates them for the target 'msra'
    if own.startswith(classifier) and target not in ('timm', 'msra'):
        return None
    if target == 'timm':
        return to_timm(own)
    return BACKBONE + own if target == 'detector' else own


def _add_bias_indices(result: Conversion) -> None:
    """Add the index buffers, which the authors' code requires."""
    for name, biases in list(result.state.items()):
        if name.endswith(ATTENTION_BIASES):
            buffer = name.removesuffix(ATTENTION_BIASES) + BIAS_INDICES
            result.added.append(buffer)
            result.state[buffer] = relative_offsets(round(biases.shape[1] ** 0.5))
