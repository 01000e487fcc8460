"""The report: one HTML page on finished or running trainings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, EvitError

__all__ = ['write_report']

NEEDED = ('altair', 'vl_convert', 'jinja2', 'hotcoco')


def write_report(
    work_dirs: Sequence[str | Path],
    out: str | Path,
    compare: bool = False,
    table: str | Path | None = None,
    device: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page on some trainings.

    Where a run's detections are not kept beside it yet, its best checkpoint, else its last, is
    evaluated on its validation set. What is missing, such as a checkpoint or data that have moved,
    the page says in a sentence.

    Args:
        work_dirs: Folders that ``tools/train.py`` wrote, or is writing, to.
        out: Folder for ``index.html``.
        compare: Say what changed from the first training to the second.
        table: ``table.json`` of ``tools/compare.py``; None takes one that lies in or beside the
            work dirs.
        device: As in :func:`evit_mm.deploy.export.evaluation.evaluate`.
        cfg_options: Overrides of the configs, such as where the data lie now.

    Returns:
        The page.

    Raises:
        ConfigError: Packages are missing, a config cannot be read, ``compare`` has not two
            trainings, or the page cannot be written.
        DataError: A folder is not a training's, or the table is none.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the report needs {', '.join(missing)}: pip install 'evit_mm[report]'")
    from ..utils.files import write_atomically
    from .analysis import analyse_detections
    from .comparison import read_found_table, read_table
    from .detections import detect
    from .page import MAX_RUNS, Shown, render
    from .runs import read_runs

    if compare and len(work_dirs) != 2:
        raise ConfigError(f'--compare takes two work dirs, got {len(work_dirs)}')
    if not 0 < len(work_dirs) <= MAX_RUNS:
        raise ConfigError(f'a page holds 1 to {MAX_RUNS} trainings, got {len(work_dirs)}')
    comparison = read_table(Path(table)) if table is not None else None  # before what takes long
    shown = [Shown(run, place) for place, run in enumerate(read_runs(work_dirs))]
    for entry in shown:
        try:
            entry.detections = detect(entry.run, device, cfg_options)
        except EvitError as error:  # the rest of the page is of use all the same
            entry.run.notes.append(f'No detections are shown: {error}.')
        else:
            entry.analysis = analyse_detections(entry.detections.truth, entry.detections.found)
    if comparison is None:
        comparison = read_found_table([entry.run for entry in shown])
    page = render(shown, compare, comparison)
    target = Path(out) / 'index.html'
    try:
        write_atomically(target, page.encode())
    except OSError as error:
        raise ConfigError(f"--out '{out}' cannot be written: {error}") from None
    return target
