"""The comparison table from separate trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import ConfigError, DataError
from ..runner.work_dir import read_scalars, trained_config
from ..utils.text import counted
from .budget import name_of, padded_size
from .runs import BUDGET, claimed, training_seconds
from .table import PREFIX, Row, count_detector, figures_of, write_tables

# what trainings with different seeds have in common
SAME_IN_A_ROW = ('model', 'optim_wrapper', 'param_scheduler')


def collect(
    work_dirs: Sequence[str | Path],
    out: str | Path,
    published: bool = False,
) -> list[Row]:
    """Write the comparison table from work dirs of ``tools/train.py``.

    Work dirs of the same config are runs with different seeds and form one row. The row shows the
    last evaluation. A training that has not reached its last epoch is listed as failed.

    Args:
        work_dirs: Folders with the saved config and mmengine's ``vis_data/scalars.json``.
        out: Folder for ``table.md``, ``table.json`` and ``table.png``.
        published: Add columns with the published COCO figures.

    Returns:
        One row per config, best first.

    Raises:
        ConfigError: ``out`` cannot be written, or contains a comparison.
        DataError: A folder is not a work dir, the trainings differ in data or schedule, or two
            trainings of a config differ in more than their seed.
    """
    if Path(out, BUDGET).exists():
        raise ConfigError(f"'{out}' contains a comparison with its own table; choose another --out")
    rows, about = read_rows(work_dirs)
    with claimed(Path(out)):
        return write_tables(rows, Path(out), about, published)


def read_rows(work_dirs: Sequence[str | Path]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of :func:`collect`, and the facts below their table. See there."""
    trainings = {work_dir: _read(work_dir) for work_dir in map(Path, work_dirs)}
    if not trainings:
        return [], {}
    alike = check_alike({str(work_dir): cfg for work_dir, (_, cfg, _) in trainings.items()})
    for (one, (config, cfg, _)), (two, (other, other_cfg, _)) in combinations(trainings.items(), 2):
        if config == other:
            _check_seeds(one, cfg, two, other_cfg)
    rows: dict[str, Row] = {}
    for work_dir, (config, cfg, scalars) in trainings.items():
        name = name_of(config)
        row = rows.setdefault(name, Row(name, cfg))
        evaluated = [entry for entry in scalars if f'{PREFIX}mAP' in entry]
        last, epochs = evaluated[-1]['step'] if evaluated else 0, cfg.train_cfg.max_epochs
        if last < epochs:
            row.failures.append(f"'{work_dir}': evaluated up to epoch {last} of {epochs}")
            continue
        row.metrics.append(figures_of(evaluated[-1]))
        row.minutes.append(training_seconds(scalars) / 60)
    sizes = [input_size(row.config) for row in rows.values()]
    for row, size in zip(rows.values(), sizes, strict=True):
        count_detector(row, size)
    about = {
        'collected from': [work_dir.name for work_dir in trainings],
        'evaluated on': Path(alike['the evaluated annotations']).name,
        'FLOPs at': ', '.join('x'.join(map(str, size)) for size in sorted(set(sizes))),
    }
    return list(rows.values()), about


def check_alike(configs: Mapping[str, Config]) -> dict[str, Any]:
    """Return the settings that all trainings in one table must share.

    Args:
        configs: Configs of the trainings, by the names that an error gives them.

    Raises:
        DataError: A config has no such setting, or two configs differ.
    """
    alike: dict[str, tuple[Any, str]] = {}
    for name, cfg in configs.items():
        for what, value in _settings(cfg, name).items():
            other, first = alike.setdefault(what, (value, name))
            if value != other:
                raise DataError(
                    f"'{first}' and '{name}' differ in {what} ({other}, {value}), so they need "
                    'separate tables; give each an --out of its own'
                )
    return {what: value for what, (value, _) in alike.items()}


def _check_seeds(one: Path, cfg: Config, two: Path, other: Config) -> None:
    """Raise a DataError if two trainings of a row have the same seed or differ in more than it."""
    differing = [key for key in SAME_IN_A_ROW if cfg.get(key) != other.get(key)]
    if differing:
        raise DataError(
            f"'{one}' and '{two}' have the same config, but differ in {', '.join(differing)}; "
            'collect them in separate tables, or rename one of the config files'
        )
    seed, other_seed = (c.get('randomness', {}).get('seed') for c in (cfg, other))
    if seed is not None and seed == other_seed:
        raise DataError(
            f"'{one}' and '{two}' have the same seed ({seed}), so they show no spread; leave one "
            'out'
        )


def _read(work_dir: Path) -> tuple[str, Config, list[dict[str, Any]]]:
    """Return the name of the config in a work dir, its values and the scalars."""
    configs = sorted(work_dir.glob('*.py'))
    scalars, _ = read_scalars(work_dir)
    if len(configs) != 1 or not scalars:
        raise DataError(
            f"'{work_dir}' is not a work dir of tools/train.py: it must contain one config (*.py, "
            f'found {len(configs)}) and */vis_data/scalars.json (found '
            f'{counted(len(scalars), "entry")})'
        )
    return configs[0].stem, Config.fromfile(trained_config(work_dir)), scalars


def input_size(cfg: Config) -> tuple[int, int]:
    """Return the largest ``(width, height)`` of an image in an evaluation, with its padding."""
    return padded_size(_scale(cfg), cfg)


def _scale(cfg: Config) -> tuple[int, int]:
    pipeline = cfg.test_dataloader.dataset.pipeline
    (scale,) = (tuple(step.scale) for step in pipeline if step.type == 'Resize')
    return scale


def _settings(cfg: Config, name: str) -> dict[str, Any]:
    """Return the settings that all trainings in one table must share."""
    try:
        dataset = cfg.test_dataloader.dataset
        annotations = Path(dataset.get('data_root') or '', dataset.ann_file)
        return {
            'the test scale': _scale(cfg),
            'the evaluated annotations': str(annotations.resolve()),
            'the number of epochs': cfg.train_cfg.max_epochs,
            'the number of classes': cfg.model.get('roi_head', cfg.model).bbox_head.num_classes,
        }
    except (AttributeError, ValueError):
        raise DataError(
            f"the config of '{name}' must have train_cfg.max_epochs, "
            'test_dataloader.dataset.ann_file, one Resize with a scale in the test pipeline, and '
            'one bbox_head with num_classes'
        ) from None
