"""Findings of the doctor: a level, a description and a fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

LEVELS = ('green', 'yellow', 'red')


@dataclass(frozen=True)
class Finding:
    """One finding of the doctor.

    Attributes:
        level: ``'green'`` (passed), ``'yellow'`` (warning) or ``'red'`` (error).
        topic: Name of the check, such as ``'versions'``.
        text: Description of the finding.
        fix: How to fix it, or an empty string.
    """

    level: str
    topic: str
    text: str
    fix: str = ''


def from_sentence(level: str, topic: str, sentence: str) -> Finding:
    """Create a finding from a message. The text after the last semicolon is the fix."""
    text, separator, fix = sentence.rpartition('; ')
    return Finding(level, topic, text, fix) if separator else Finding(level, topic, sentence)


def guarded(topic: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return the findings of a check. An exception in the check becomes a red finding.

    Output that libraries print during the check is discarded, because stdout is for the report.
    """
    found: list[Finding] = []
    try:
        with redirect_stdout(StringIO()):
            found.extend(check())
    except Exception as error:  # noqa: BLE001 - a broken environment can raise any exception
        text = ' '.join(str(error).split())
        if not any(kind.__name__ == 'EvitError' for kind in type(error).__mro__):
            text = f'{type(error).__name__}: {text}'
        found.append(from_sentence('red', topic, text))
    return found


def worst(findings: Sequence[Finding]) -> str:
    """Return the worst level of the findings, or green if there are no findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default='green')


def as_records(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the worst level and all findings as a dict, for ``--json``."""
    return {'level': worst(findings), 'findings': [asdict(finding) for finding in findings]}


def show(findings: Sequence[Finding]) -> None:
    """Print one line per finding."""
    for found in findings:
        fix = f' -> {found.fix}' if found.fix else ''
        print(f'{found.level:6} {found.topic}: {found.text}{fix}')  # noqa: T201
