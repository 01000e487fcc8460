"""Is everything in order before a long run: the stack, the data set, the checkpoint.

Nothing here is imported but the standard library until the stack has been found whole.
"""

from __future__ import annotations

import importlib

from .findings import Finding, as_records, guarded, show, worst
from .stack import (
    check_disk,
    check_environment,
    check_operators,
    check_package,
    check_shared_memory,
    check_versions,
)

__all__ = ['Finding', 'as_records', 'diagnose', 'show', 'worst']


def diagnose(
    config: str | None = None, checkpoint: str | None = None, all_images: bool = False
) -> list[Finding]:
    """Check the stack, and a config with its data set and its checkpoint.

    Args:
        config: Config file; None checks the stack alone.
        checkpoint: Checkpoint for it, as for ``tools/test.py``.
        all_images: Decode every image of the data set instead of a few.

    Returns:
        What was found, in the order in which it was looked at. Nothing is raised: a check that
        fails by itself is a red finding.
    """
    findings = [*guarded('versions', check_versions)]
    sound = True
    for topic, check in (
        ('environment', check_environment),
        ('operators', check_operators),
        ('imports', check_package),
    ):
        if sound:  # importing what ends the probe would end this process too
            found = [*guarded(topic, check)]
            findings += found
            sound = worst(found) != 'red'
    if config is not None and sound:
        data = importlib.import_module('.data', __package__)  # not at the top: imports mmengine
        findings += guarded('config', lambda: data.check_config(config, checkpoint, all_images))
        return findings
    if config is not None:
        text, mend = 'not checked, since the stack is broken', 'mend what is red; run this again'
        findings.append(Finding('yellow', 'config', text, mend))
    findings += guarded('disk', lambda: check_disk('.'))
    return [*findings, *guarded('shared memory', check_shared_memory)]
