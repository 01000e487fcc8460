from dataclasses import asdict

import pytest

from evit_mm.models.variants import VARIANTS, Variant, resolve_arch


def test_names_dicts_and_variants_are_taken():
    assert resolve_arch('M4') is VARIANTS['m4']
    assert resolve_arch(asdict(VARIANTS['m2'])) == VARIANTS['m2']
    assert resolve_arch(VARIANTS['m0']) is VARIANTS['m0']
    with_lists = {k: list(v) for k, v in asdict(VARIANTS['m1']).items()}
    assert resolve_arch(with_lists) == VARIANTS['m1']


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        ({'embed_dim': (16, 24, 32)}, KeyError, "did you mean 'embed_dims'"),
        ({'embed_dims': (16, 24)}, ValueError, 'must have 3 entries'),
        ({'embed_dims': (20, 24, 32)}, ValueError, 'multiple of 8'),
        ({'embed_dims': 16}, TypeError, 'sequence of integers'),
        ({'embed_dims': (16.0, 24, 32)}, TypeError, 'sequence of integers'),
        ({'num_heads': (2, 5, 2)}, ValueError, r'num_heads\[1\] = 5 does not divide'),
        ({'num_heads': (4, 4, 4)}, ValueError, 'one kernel size per head'),
        ({'kernel_sizes': (3, 4)}, ValueError, 'odd'),
        ({'depths': (1, 0, 1)}, ValueError, 'positive'),
    ],
)
def test_impossible_architectures_are_refused_by_name(tiny, change, error, message):
    with pytest.raises(error, match=message):
        resolve_arch({**tiny, **change})


def test_unknown_name_missing_key_and_wrong_type(tiny):
    with pytest.raises(KeyError, match='m0, m1, m2, m3, m4, m5'):
        resolve_arch('m6')
    del tiny['depths']
    with pytest.raises(KeyError, match='arch has no depths'):
        resolve_arch(tiny)
    with pytest.raises(TypeError, match='name or a dict'):
        resolve_arch(4)


def test_a_variant_cannot_be_changed():
    with pytest.raises(AttributeError):
        VARIANTS['m0'].depths = (1, 1, 1)
    assert isinstance(VARIANTS['m0'], Variant)
