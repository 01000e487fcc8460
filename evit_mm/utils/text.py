"""Counts, hints for error messages, and Markdown tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``'1 image'``, ``'2 images'``, ``'2,000 boxes'``.

    The plural gets ``es`` after a hissing sound, which ``epoch`` does not have, and ``ies`` in
    place of ``y`` after a consonant.
    """
    if number == 1:
        return f'1 {noun}'
    if noun.endswith(('s', 'x', 'z', 'ch', 'sh')) and not noun.endswith('epoch'):
        return f'{number:,} {noun}es'
    if noun.endswith('y') and noun[-2] not in 'aeiou':
        return f'{number:,} {noun[:-1]}ies'
    return f'{number:,} {noun}s'


def did_you_mean(word: object, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> str:
    """Return ``" (did you mean 'X'?)"`` with up to ``n`` similar words, or an empty string.

    ``cutoff`` is the minimum similarity, from 0 to 1.
    """
    close = difflib.get_close_matches(str(word), list(known), n=n, cutoff=cutoff)
    quoted = ' or '.join(f"'{name}'" for name in close)
    return f' (did you mean {quoted}?)' if close else ''


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    head, *body = (f'| {" | ".join(cells)} |' for cells in (columns, *rows))
    return [head, f'|{"---|" * len(columns)}', *body]
