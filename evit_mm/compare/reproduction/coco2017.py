"""Check that a folder contains COCO 2017, complete and unchanged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
from mmengine.config import Config

from ...data.check import inspect_config_data
from ...data.coco import read_json
from ...errors import DataError

DOWNLOADS = 'http://images.cocodataset.org'
ZIP = f'{DOWNLOADS}/annotations/annotations_trainval2017.zip'
NUM_CATEGORIES = 80


@dataclass(frozen=True)
class Split:
    """One split of COCO 2017.

    COCO publishes no checksums. Several projects that downloaded the archive independently record
    this SHA-256 and size. A file with another SHA-256 is accepted if the numbers are right.
    """

    images: int
    boxes: int
    size: int  # bytes of the annotation file
    sha256: str  # of the annotation file


COCO2017 = {
    'train': Split(
        118_287,
        860_001,
        469_785_474,
        '610fce4944abdeb15354cc765333805529359d12d88f2f711393ca586901d01d',
    ),
    'val': Split(
        5_000,
        36_781,
        19_987_840,
        'e8c7f7908f1d7278341fae127d0da654f102f11bd7b21d8aeefa635b8c810b6f',
    ),
}
ANN_FILES = {split: f'annotations/instances_{split}2017.json' for split in COCO2017}


def check_coco2017(
    configs: Sequence[Config],
    root: str | Path,
    splits: Sequence[str],
    rehearsal: bool,
    before: Mapping[str, Any],
) -> tuple[list[str], dict[str, Any]]:
    """Check the annotation files by content, and the images by name, number and a sample.

    Args:
        configs: Configs that use the data. Their data sets are checked as before a training.
        root: Folder in COCO's own layout.
        splits: ``train``, ``val``.
        rehearsal: Accept other images and boxes than those of COCO 2017.
        before: Facts of an earlier check. A file that has not changed is not examined again.

    Returns:
        One sentence per error with its fix, and facts: the SHA-256 of each annotation file.
    """
    faults: list[str] = []
    facts: dict[str, Any] = {}
    for split in splits:
        faults += _missing(Path(root), split)
        file = Path(root, ANN_FILES[split])
        if not file.is_file():
            continue
        digest = facts[f'sha256 of {file.name}'] = pooch.file_hash(str(file), alg='sha256')
        if not rehearsal and digest != COCO2017[split].sha256:
            faults += _differences(file, COCO2017[split])
    if faults:
        return faults, facts
    if all(before.get(key) == digest for key, digest in facts.items()) and not rehearsal:
        return list(_uncounted(Path(root), splits)), facts
    # a config that loads masks needs all that the others need
    config = max(configs, key=loads_masks)
    return inspect_config_data(config, splits).faults, facts


def unlike_coco(facts: Mapping[str, Any], rehearsal: bool) -> Iterator[str]:
    """Yield a notice for each accepted file that is not byte for byte that of COCO."""
    for split, file in ANN_FILES.items():
        digest = facts.get(f'sha256 of {Path(file).name}')
        if not rehearsal and digest not in (None, COCO2017[split].sha256):
            yield (
                f'**{file} is not byte for byte the file of COCO,** but has its numbers of images, '
                'annotations and categories.'
            )


def loads_masks(cfg: Config) -> bool:
    """Return whether a config trains on masks."""
    steps = cfg.train_dataloader.dataset.get('pipeline', ())
    return any(step.get('with_mask', False) for step in steps)


def _missing(root: Path, split: str) -> Iterator[str]:
    file, folder = root / ANN_FILES[split], root / f'{split}2017'
    if not file.is_file():
        yield f"'{file}' does not exist; download {ZIP} and unzip it in '{root}'"
    if not folder.is_dir():
        archive = f'{DOWNLOADS}/zips/{folder.name}.zip'
        yield f"'{folder}' does not exist; download {archive} and unzip it in '{root}'"


def _differences(file: Path, expected: Split) -> Iterator[str]:
    """Yield what is wrong with an annotation file that is not byte for byte that of COCO."""
    fix = f'replace it by the file in {ZIP}'
    try:
        content = read_json(file)
    except DataError:
        size = f'{file.stat().st_size:,} of {expected.size:,} bytes'
        yield f"'{file}' is truncated or damaged ({size}); {fix}"
        return
    wanted = {
        'images': expected.images,
        'annotations': expected.boxes,
        'categories': NUM_CATEGORIES,
    }
    found = {key: len(content.get(key, ())) for key in wanted} if isinstance(content, dict) else {}
    wrong = [
        f'{found.get(k, 0):,} instead of {n:,} {k}' for k, n in wanted.items() if found.get(k) != n
    ]
    if wrong:
        yield (
            f"'{file}' is not COCO's: it has {', '.join(wrong)}; {fix}, or add --rehearsal to try "
            'the command on other data'
        )


def _uncounted(root: Path, splits: Sequence[str]) -> Iterator[str]:
    """Yield the splits with too few images."""
    for split in splits:
        folder = root / f'{split}2017'
        number = sum(entry.name.endswith('.jpg') for entry in os.scandir(folder))
        if number < COCO2017[split].images:
            yield (
                f"'{folder}' has {number:,} of {COCO2017[split].images:,} images; unzip "
                f'{DOWNLOADS}/zips/{folder.name}.zip again'
            )
