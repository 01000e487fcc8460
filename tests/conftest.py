"""Helpers that several rooms' tests share: tiny architectures, known weights, the real data."""

import logging
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import config
from mmengine.logging import MMLogger

import evit_mm

ROOT = Path(evit_mm.__file__).resolve().parents[1]
DATA = Path(os.environ.get('EVIT_MM_TEST_DATA', ROOT.parent / 'shared' / 'data'))
TINY = {
    'embed_dims': (16, 24, 32),
    'depths': (1, 1, 2),
    'num_heads': (2, 2, 2),
    'kernel_sizes': (5, 3),
    'key_dims': (4, 4, 4),
}


@pytest.fixture(scope='session', autouse=True)
def unformatted_configs():
    """Leave out what mmengine does with yapf three times per run; it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, 'FormatCode', lambda text, **_: (text, True))
        yield


@pytest.fixture
def tiny() -> dict:
    """An architecture with every part of the real ones and about 40 thousand parameters."""
    return dict(TINY)


@pytest.fixture(scope='session')
def real_data():
    """Return a function that gives a folder of the real test data, or skips saying why."""

    def folder(name: str) -> Path:
        path = DATA / name
        if not path.is_dir():
            pytest.skip(f'real test data {name} not found beside the checkout')
        return path

    return folder


@pytest.fixture(scope='session')
def chromium():
    """Debian's Chromium without a screen, driven by playwright; skips where there is none."""
    names = ('chromium', 'chromium-browser', 'google-chrome')
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip('no Chromium to look at pages with (requirements/browser.sh installs it)')
    import psutil
    from playwright.sync_api import sync_playwright

    before = set(psutil.Process().children())
    with sync_playwright() as playwright:
        driver = set(psutil.Process().children()) - before
        browser = playwright.chromium.launch(
            executable_path=found, args=['--no-sandbox', '--disable-gpu', '--disable-quic']
        )
        yield browser
        browser.close()
        # it waits for the end of its pipe, which a worker forked meanwhile may hold open for good
        for process in driver:
            process.kill()


@pytest.fixture
def page(chromium):
    """A browser page; the test fails if a script of it fails or writes an error to its console."""
    page = chromium.new_page(viewport={'width': 1280, 'height': 900})
    errors = []
    page.on('pageerror', lambda error: errors.append(str(error)))
    page.on('console', lambda said: said.type == 'error' and errors.append(said.text))
    yield page
    page.close()
    assert not errors


@pytest.fixture(scope='session')
def cpp_example(tmp_path_factory):
    """examples/detect.cpp, compiled as its first lines say; skips without g++ or the headers."""
    openvino = pytest.importorskip('openvino')
    folder = Path(openvino.__file__).parent
    if shutil.which('g++') is None:
        pytest.skip('no g++ to compile examples/detect.cpp')
    if not (folder / 'include/openvino').is_dir() or not any(folder.glob('libs/libopenvino.so.*')):
        pytest.skip('the installed openvino has no headers or no library for g++')
    source = ROOT / 'examples' / 'detect.cpp'
    commands = re.findall(r'^// ((?:OV=|g\+\+).*)', source.read_text(), re.MULTILINE)
    path = tmp_path_factory.mktemp('cpp')
    bin_folder = Path(sys.executable).parent
    command = '\n'.join(['set -e', f'cd {ROOT}', *commands]).replace(
        ' -o detect', f' -o {path}/detect'
    )
    environment = {**os.environ, 'PATH': f'{bin_folder}:{os.environ["PATH"]}'}
    subprocess.run(['bash', '-c', command], check=True, env=environment)
    return path / 'detect'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _open_log_files():
    """Remove the log files that a web server's logging configuration has closed."""
    logger = MMLogger.get_current_instance()
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler) and handler.stream is None:
            logger.removeHandler(handler)


def golden_weights(
    model: torch.nn.Module, prefix: str = '', float64: bool = False
) -> torch.nn.Module:
    """Fill a model with the weights of the golden figures, which depend only on their names.

    Args:
        model: Is changed in place.
        prefix: Of the names in the authors' checkpoint.
        float64: Choose the rule of the float64 figures, which does not saturate the attention.
    """
    for name, tensor in model.state_dict().items():
        if name.endswith(('attention_bias_idxs', 'num_batches_tracked')):
            continue
        name = prefix + name
        x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(tensor.shape))
        x = x if float64 else x.astype(np.float32)
        if name.endswith('running_var'):
            x = 0.5 + np.abs(x)
        elif name.endswith('running_mean'):
            x = 0.1 * x
        elif name.endswith('bn.weight'):
            x = 0.7 * (1 + 0.2 * x) if float64 else 1 + 0.1 * x
        elif name.endswith('bias'):
            x = 0.1 * x
        elif not name.endswith('attention_biases'):
            x = x * np.sqrt(1 / np.prod(tensor.shape[1:]))
        tensor.copy_(torch.from_numpy(np.asarray(x)))
    return model


def randomise(model: torch.nn.Module, gain: float = 0.5) -> torch.nn.Module:
    """Give every parameter and BatchNorm statistic a value of its own, with tame activations."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        x = torch.randn(tensor.shape, generator=generator)
        if name.endswith('running_var'):
            x = 0.5 + x.abs()
        elif name.endswith('bn.weight'):
            x = gain * (1 + 0.2 * x)
        elif tensor.ndim < 2:
            x = 0.1 * x
        elif not name.endswith('attention_biases'):
            x = x / tensor[0].numel() ** 0.5
        tensor.copy_(x)
    return model


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative L2 error of one tensor against another."""
    found, expected = found.detach(), expected.detach()
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(1e-30))
