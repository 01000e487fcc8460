"""Hints and numbers for messages, and Markdown tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(word: object, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """Return ``" (did you mean 'X'?)"`` with up to ``n`` similar words, or an empty string.

    ``cutoff`` is the minimum similarity, from 0 to 1.
    """
    close = difflib.get_close_matches(str(word), list(known), n=n, cutoff=cutoff)
    quoted = ' or '.join(f"'{name}'" for name in close)
    return f' (did you mean {quoted}?)' if close else ''


def count_of(number: int, one: str, many: str = '') -> str:
    """Return a number with its noun: ``'1 image'``, ``'2,000 images'``."""
    return f'{number:,} {one if number == 1 else many or f"{one}s"}'


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    head, *body = (f'| {" | ".join(cells)} |' for cells in (columns, *rows))
    return [head, f'|{"---|" * len(columns)}', *body]
