"""Several processes."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this process is the first of its launcher's, before they have joined."""
    return os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0'
