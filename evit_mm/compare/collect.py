"""The comparison table from separate trainings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import DataError
from ..runner.work_dir import read_scalars, trained_config
from ..utils.text import counted
from .budget import name_of
from .runs import claimed, training_seconds
from .table import PREFIX, Row, count_detector, figures_of, write_tables


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
        ConfigError: ``out`` cannot be written.
        DataError: A folder is not a work dir, or the trainings differ in data or schedule.
    """
    rows, about = read_rows(work_dirs)
    with claimed(Path(out)):
        return write_tables(rows, Path(out), about, published)


def read_rows(work_dirs: Sequence[str | Path]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of :func:`collect`, and the facts below their table. See there."""
    rows: dict[str, Row] = {}
    alike: dict[str, tuple[Any, Path]] = {}
    for work_dir in map(Path, work_dirs):
        config, cfg, scalars = _read(work_dir)
        name = name_of(config)
        row = rows.setdefault(name, Row(name, cfg))
        for what, value in _common(cfg, work_dir).items():
            other, where = alike.setdefault(what, (value, work_dir))
            if value != other:
                raise DataError(
                    f"'{where}' and '{work_dir}' differ in {what} ({other}, {value}); collect them "
                    'in separate tables'
                )
        evaluated = [entry for entry in scalars if f'{PREFIX}mAP' in entry]
        last, epochs = evaluated[-1]['step'] if evaluated else 0, cfg.train_cfg.max_epochs
        if last < epochs:
            row.failures.append(f"'{work_dir}': evaluated up to epoch {last} of {epochs}")
            continue
        row.metrics.append(figures_of(evaluated[-1]))
        row.minutes.append(training_seconds(scalars) / 60)
    if not rows:
        return [], {}
    scale, _ = alike['the test scale']
    for row in rows.values():
        count_detector(row, scale)
    about = {
        'collected from': [Path(work_dir).name for work_dir in work_dirs],
        'evaluated on': Path(alike['the evaluated annotations'][0]).name,
        'FLOPs at': 'x'.join(map(str, scale)),
    }
    return list(rows.values()), about


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


def test_scale(cfg: Config) -> tuple[int, int]:
    """Return the largest ``(width, height)`` of a resized image in an evaluation."""
    pipeline = cfg.test_dataloader.dataset.pipeline
    (scale,) = (tuple(step.scale) for step in pipeline if step.type == 'Resize')
    return scale


def _common(cfg: Config, work_dir: Path) -> dict[str, Any]:
    """Return the settings that all trainings in one table must share."""
    dataset = cfg.test_dataloader.dataset
    try:
        scale = test_scale(cfg)
        annotations = Path(dataset.get('data_root') or '', dataset.ann_file)
        epochs = cfg.train_cfg.max_epochs
    except (AttributeError, ValueError):
        raise DataError(
            f"the config in '{work_dir}' must have train_cfg.max_epochs, "
            'test_dataloader.dataset.ann_file and one Resize with a scale in the test pipeline'
        ) from None
    return {
        'the test scale': scale,
        'the evaluated annotations': str(annotations),
        'the number of epochs': epochs,
        'the number of classes': cfg.model.get('roi_head', cfg.model).bbox_head.num_classes,
    }
