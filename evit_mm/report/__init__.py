"""A report on finished or running trainings as one HTML page."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, EvitError

__all__ = ['write_report']


def write_report(
    work_dirs: Sequence[str | Path],
    out: str | Path,
    compare: bool = False,
    device: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report page of one or several trainings.

    The best checkpoint of each run, or its last one, is evaluated on the validation set. The
    detections are cached in the work dir. The page states what is missing, for example a checkpoint
    or the images.

    Args:
        work_dirs: Work dirs of finished or running trainings of ``tools/train.py``.
        out: Folder for ``index.html``.
        compare: Add a section with the changes from the first training to the second.
        device: See :func:`evit_mm.runner.test.test`.
        cfg_options: Overrides of the configs, for example a new path of the data set.

    Returns:
        The written file.

    Raises:
        ConfigError: jinja2 is missing, a config cannot be read, ``compare`` is used without exactly
            two trainings, or the page cannot be written.
        DataError: A folder is not a work dir.
    """
    if importlib.util.find_spec('jinja2') is None:
        raise ConfigError("the report needs jinja2; install it with: pip install 'evit_mm[report]'")
    from ..utils.files import write_atomically
    from .analysis import analyse_detections
    from .charts import COLOURS
    from .detections import detect
    from .page import MAX_RUNS, Shown, render
    from .runs import read_runs

    if compare and len(work_dirs) != 2:
        raise ConfigError(f'--compare needs two work dirs, got {len(work_dirs)}')
    if not 0 < len(work_dirs) <= MAX_RUNS:
        raise ConfigError(f'a report needs 1 to {MAX_RUNS} work dirs, got {len(work_dirs)}')
    shown = [Shown(*pair) for pair in zip(read_runs(work_dirs), COLOURS, strict=False)]
    for entry in shown:
        try:
            entry.detections = detect(entry.run, device, cfg_options)
        except EvitError as error:  # the page is useful without detections
            entry.run.notes.append(f'No detections are shown: {error}.')
        else:
            _, truth, found, read = entry.detections
            entry.analysis = analyse_detections(truth, found, read)
    page = render(shown, compare)
    target = Path(out) / 'index.html'
    try:
        write_atomically(target, page.encode())
    except OSError as error:
        raise ConfigError(f"--out '{out}' cannot be written: {error}") from None
    return target
