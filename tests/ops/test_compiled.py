"""Operators against what a compiled mmcv returned, see ``cases.py``."""

import numpy as np
import pytest

import evit_mm.ops  # noqa: F401 - mmcv finds its operators

from .cases import CASES, RECORDED


@pytest.mark.parametrize('name', CASES)
def test_operators_return_what_compiled_ones_do(name):
    found = {key: value.detach().numpy() for key, value in CASES[name]().items()}
    with np.load(RECORDED) as recorded:
        expected = {
            key.partition('/')[2]: recorded[key] for key in recorded if key.startswith(f'{name}/')
        }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        assert found[key].dtype == value.dtype, key
        if value.dtype.kind == 'i':
            np.testing.assert_array_equal(found[key], value, key)
        else:
            scale = np.abs(value).max() if value.size else 1.0
            np.testing.assert_allclose(found[key], value, 1e-5, 1e-5 * max(1, scale), err_msg=key)
