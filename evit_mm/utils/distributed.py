"""Distributed training."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Return whether this is the rank 0 process, also before the process group is initialised."""
    return os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0'
