"""What the doctor found: a level, a sentence, and how to mend it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from typing import Any

LEVELS = ('green', 'yellow', 'red')


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        level: ``'green'`` fine, ``'yellow'`` works but look at it, ``'red'`` will fail.
        topic: What was looked at, such as ``'versions'``.
        text: What was found.
        mend: What to do about it; empty where nothing is to be done.
        details: Figures behind the text, for ``--json``.
    """

    level: str
    topic: str
    text: str
    mend: str = ''
    details: dict[str, Any] = field(default_factory=dict)


def guarded(topic: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; a check that fails itself becomes a red line, not a traceback.

    Libraries print while they load and build; stdout belongs to the report.
    """
    found: list[Finding] = []
    try:
        with redirect_stdout(StringIO()):
            found.extend(check())
    except Exception as error:  # noqa: BLE001 - a doctor has to outlive whatever is broken
        reason = ' '.join(str(error).split())[:500] or 'no message'
        # the package's own errors say what to mend; anything else was not foreseen
        known = any(kind.__name__ == 'EvitError' for kind in type(error).__mro__)
        text, mend = split_mend(str(error) if known else f'{type(error).__name__}: {reason}')
        found.append(Finding('red', topic, text, mend or 'see the message'))
    yield from found


def split_mend(sentence: str) -> tuple[str, str]:
    """Split one of the package's messages, which end in what to do: ``(text, mend)``."""
    text, separator, mend = sentence.rpartition('; ')
    return (text, mend) if separator else (sentence, '')


def worst(findings: Sequence[Finding]) -> str:
    """Return the worst level among the findings, green if there are none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default='green')


def as_records(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what ``--json`` prints: the worst level, and every finding."""
    return {'level': worst(findings), 'findings': [asdict(finding) for finding in findings]}


def show(findings: Sequence[Finding]) -> None:
    """Print a line of each finding, and what to do about it."""
    for found in findings:
        mend = f' -> {found.mend}' if found.mend else ''
        print(f'{found.level:6} {found.topic}: {found.text}{mend}')  # noqa: T201
