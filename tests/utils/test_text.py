"""Hints and tables."""

import pytest

from evit_mm.utils.text import counted, did_you_mean, markdown_table


@pytest.mark.parametrize(
    ('number', 'noun', 'text'),
    [
        (0, 'image', '0 images'), (1, 'image', '1 image'), (2, 'image', '2 images'),
        (1, 'box', '1 box'), (3, 'box', '3 boxes'), (2, 'batch', '2 batches'),
        (3, 'epoch', '3 epochs'),
        (1, 'class', '1 class'), (2, 'class', '2 classes'), (12, 'category', '12 categories'),
        (2, 'entry', '2 entries'), (2, 'key', '2 keys'), (1, 'entry', '1 entry'),
    ],
)  # fmt: skip
def test_a_noun_agrees_with_its_number(number, noun, text):
    assert counted(number, noun) == text


KNOWN = ['window_size', 'window_sizes', 'depths', 'windows', '10']


@pytest.mark.parametrize(
    ('word', 'options', 'hint'),
    [
        ('window_siz', {}, " (did you mean 'window_size'?)"),
        (
            'window_siz',
            {'n': 3},
            " (did you mean 'window_size' or 'window_sizes' or 'windows'?)",
        ),
        ('width', {}, ''),  # 0.55 alike: 2 * 3 letters of 5 + 6
        ('width', {'cutoff': 0.5}, " (did you mean 'depths'?)"),
        ('depthwise', {}, " (did you mean 'depths'?)"),  # 0.8 alike: 2 * 6 letters of 9 + 6
        ('depthwise', {'cutoff': 0.81}, ''),
        (101, {}, " (did you mean '10'?)"),
        ('zzz', {'n': 3}, ''),
    ],
)
def test_similar_names_are_hinted_at(word, options, hint):
    assert did_you_mean(word, iter(KNOWN), **options) == hint


def test_a_table_has_a_head_a_rule_and_its_rows():
    rows = iter([['m0', '1'], ('m1', '2')])
    lines = ['| model | AP |', '|---|---|', '| m0 | 1 |', '| m1 | 2 |']
    assert markdown_table(['model', 'AP'], rows) == lines
    assert markdown_table(['a', 'b', 'c'], []) == ['| a | b | c |', '|---|---|---|']
