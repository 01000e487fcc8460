import pytest
import torch

from evit_mm.models.window import window_partition, window_unpartition

SIZES = [(7, 7), (14, 7), (8, 9), (1, 1), (5, 20), (21, 13)]


def naive_partition(x, w):
    """Copy token by token into zero windows."""
    batch, channels, height, width = x.shape
    rows, cols = -(-height // w), -(-width // w)
    windows = torch.zeros(batch * rows * cols, channels, w, w, dtype=x.dtype)
    for b in range(batch):
        for y in range(height):
            for i in range(width):
                index = (b * rows + y // w) * cols + i // w
                windows[index, :, y % w, i % w] = x[b, :, y, i]
    return windows


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('w', [4, 7])
@pytest.mark.parametrize('channels_last', [False, True])
def test_partition_equals_a_naive_loop_and_is_undone(size, w, channels_last):
    x = torch.randn(2, 3, *size)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    windows = window_partition(x, w)
    assert torch.equal(windows, naive_partition(x, w))
    assert torch.equal(window_unpartition(windows, *size), x)
