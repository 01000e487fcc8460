"""Check the environment, and a config with its data and checkpoint, before a long run.

This package imports only the standard library until the environment has passed its checks.
"""

from __future__ import annotations

import importlib

from .findings import Finding, as_records, guarded, show, worst
from .stack import check_environment, check_operators, check_versions

__all__ = ['Finding', 'as_records', 'diagnose', 'show', 'worst']


def diagnose(
    config: str | None = None,
    checkpoint: str | None = None,
    all_images: bool = False,
    data: str | None = None,
) -> list[Finding]:
    """Check the environment, and a config with its data and its checkpoint.

    This function does not raise. An exception inside a check becomes a red finding.

    Args:
        config: Config file. None checks only the environment.
        checkpoint: Checkpoint for the model of the config, as for ``tools/test.py``.
        all_images: Whether to decode all images of the data sets instead of a few.
        data: Data folder, as for ``tools/train.py --data``.

    Returns:
        The findings in the order of the checks.
    """
    findings = guarded('versions', check_versions)
    findings += guarded('environment', check_environment)
    if worst(findings) != 'red':
        findings += guarded('operators', check_operators)
    if config is None and data is None:
        return findings
    if worst(findings) == 'red':
        text = 'not checked because the environment has errors'
        fix = 'fix the red findings, then run this command again'
        return [*findings, Finding('yellow', 'config', text, fix)]
    checks = importlib.import_module('.config', __package__)
    if data is not None:
        findings += guarded('data', lambda: checks.check_folder(data, all_images))
    if config is not None:
        check = checks.check_config
        findings += guarded('config', lambda: check(config, checkpoint, all_images))
    return findings
