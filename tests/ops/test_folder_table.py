"""The table that compares two kinds of operators on mmdet's configs."""

import math

import pytest

from .folder_table import compare, differences, distance


def result(provided, loss=2.0, gradient=(3.0, 1.0), boxes=(1.0, 2.0), **more):
    train = {'losses': {'loss': loss}, 'gradients': {'w': list(gradient)}, 'operators': ['nms']}
    predict = {'found': {'boxes': list(boxes)}, 'operators': []}
    return {'config': 'a/b.py', 'provided': provided, 'train': train, 'predict': predict, **more}


def test_differences_are_relative_to_the_largest_number():
    assert distance([1.0, 100.0], [1.0, 101.0]) == pytest.approx(1 / 101)
    assert distance([0.0, 100.0], [1.0, 100.0]) == pytest.approx(0.01)
    assert distance({'a': 1e-9}, {'a': 0.0}, scale=1.0) == pytest.approx(1e-9)
    assert distance([1.0], [1.0, 2.0]) == math.inf
    assert distance({'a': 1.0}, {'b': 1.0}) == math.inf
    assert distance([math.nan, 1.0], [math.nan, 1.0]) == 0
    assert distance([math.nan], [1.0]) == distance([1.0], [math.nan]) == math.inf
    assert distance([0.0], [1.0]) == 1


@pytest.mark.parametrize(
    'changed, state',
    [
        ({}, 'equal'),
        ({'loss': 2.0001}, 'equal'),
        ({'loss': 2.001}, 'different'),
        ({'gradient': (3.0, 1.01)}, 'different'),
        ({'boxes': (1.0, 2.001)}, 'different'),
        ({'boxes': (1.0,)}, 'different'),
        ({'boxes': (1.0, math.nan)}, 'different'),
        ({'predict': {'error': 'E: no', 'operators': []}}, 'equal, only compiled'),
    ],
)
def test_states(changed, state):
    table = compare({'a': result('compiled')}, [{'a': result('torchvision', **changed)}])
    assert table.endswith(f'- {state}: 1')
    assert ('E: no' in table) == ('predict' in changed)


def test_what_compares_nothing_says_so():
    empty = [result(name, boxes=()) for name in ('compiled', 'torchvision')]
    assert differences(*empty)['found'] == 'nothing found'
    failed = [{'config': None, 'provided': name, 'error': 'E'} for name in 'ab']
    assert set(differences(*failed).values()) == {'neither'}
