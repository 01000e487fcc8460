"""What the doctor finds: a level, a sentence, and how to fix it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

LEVELS = ('green', 'yellow', 'red')


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        level: ``'green'`` fine, ``'yellow'`` works but look at it, ``'red'`` will fail.
        topic: What was checked, such as ``'versions'``.
        text: What was found.
        mend: What to do about it; empty where nothing is to be done.
    """

    level: str
    topic: str
    text: str
    mend: str = ''


def from_sentence(level: str, topic: str, sentence: str) -> Finding:
    """Make a finding of one of the package's messages, which end in a semicolon and the fix."""
    text, separator, mend = sentence.rpartition('; ')
    return Finding(level, topic, text, mend) if separator else Finding(level, topic, sentence)


def guarded(topic: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what a check finds; an error of the check itself becomes a red finding.

    Libraries print while they load and build; stdout belongs to the report.
    """
    found: list[Finding] = []
    try:
        with redirect_stdout(StringIO()):
            found.extend(check())
    except Exception as error:  # noqa: BLE001 - whatever a broken environment raises
        text = ' '.join(str(error).split())
        if not any(kind.__name__ == 'EvitError' for kind in type(error).__mro__):
            text = f'{type(error).__name__}: {text}'
        found.append(from_sentence('red', topic, text))
    return found


def worst(findings: Sequence[Finding]) -> str:
    """Return the worst level among the findings, green if there are none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default='green')


def as_records(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what ``--json`` prints: the worst level, and every finding."""
    return {'level': worst(findings), 'findings': [asdict(finding) for finding in findings]}


def show(findings: Sequence[Finding]) -> None:
    """Print one line for each finding."""
    for found in findings:
        mend = f' -> {found.mend}' if found.mend else ''
        print(f'{found.level:6} {found.topic}: {found.text}{mend}')  # noqa: T201
