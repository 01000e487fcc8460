"""Text for people: hints in error messages, tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(word: object, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """Return ``", did you mean 'X'?"``, or nothing where no known word is close.

    Args:
        word: What was written.
        known: The words that exist.
        n: At most so many are offered.
        cutoff: How alike two words must be, from 0 to 1.
    """
    close = difflib.get_close_matches(str(word), list(known), n=n, cutoff=cutoff)
    quoted = ' or '.join(f"'{name}'" for name in close)
    return f', did you mean {quoted}?' if close else ''


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    head, *body = (f'| {" | ".join(cells)} |' for cells in (columns, *rows))
    return [head, f'|{"---|" * len(columns)}', *body]
