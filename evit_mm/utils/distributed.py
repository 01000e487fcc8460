"""Distributed training."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Return whether this process has rank 0.

    The result is valid before the process group is initialised.
    """
    return os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0'
