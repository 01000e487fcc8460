"""Read a published detector from a folder or from the Hugging Face hub."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import safetensors
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ...checkpoint import DERIVED
from ...checkpoint.file_kinds import kind_of
from ...checkpoint.reading import first_line
from ...checkpoint.sources import fetch_folder
from ...data.pipeline import PredictionPipeline
from ...errors import CheckpointError, ConfigError, EvitError
from .config_json import from_json

HUB = 'hf-hub:'
CONFIG, WEIGHTS, CARD = 'config.json', 'model.safetensors', 'README.md'


def load_published(source: str | Path) -> tuple[Config, Path]:
    """Read a detector that :func:`~evit_mm.deploy.hub.publish` has written. It can be a stranger's.

    No code from the folder runs, and no file that the config names is read. See
    :mod:`~evit_mm.deploy.hub.config_json`. Before the weights are read, their number is compared
    with the config.

    Args:
        source: ``hf-hub:OWNER/NAME``, optionally with ``@REVISION``, or a folder. Downloads go into
            the cache of the Hugging Face hub.

    Returns:
        The config and the file with the weights, for
        :func:`~evit_mm.runner.build.load_detector` and
        :class:`~evit_mm.data.pipeline.PredictionPipeline`.

    Raises:
        EvitError: The repository cannot be downloaded, a file is missing, or the config or the
            weights are not those of a published detector.
    """
    text = str(source)
    if text.startswith(HUB):
        folder = fetch_folder(text.removeprefix(HUB), (CONFIG, WEIGHTS))
    else:
        folder = Path(text).expanduser()
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ConfigError(
                f"'{source}' has no file {name}; give a folder or a repository that "
                'tools/publish.py has written'
            )
    file, weights = folder / CONFIG, folder / WEIGHTS
    cfg = from_json(file.read_bytes(), f"'{file}'", file)
    _check_fit(cfg, weights)
    return cfg, weights


def _check_fit(cfg: Config, weights: Path) -> None:
    """Check that a config can be built, and that it has as many weights as the file."""
    from mmdet.registry import MODELS

    stored = _count(weights)
    init_default_scope('mmdet')
    try:  # on the meta device, which needs no memory, however large the network of a stranger is
        with torch.device('meta'):
            model = MODELS.build(copy.deepcopy(cfg.model))
        PredictionPipeline(cfg)
    except EvitError:
        raise
    except Exception as error:  # wrong values can raise anything
        reason = f'{type(error).__name__}: {first_line(error)}'
        raise ConfigError(f"'{cfg.filename}' does not describe a detector ({reason})") from error
    number = sum(x.numel() for k, x in model.state_dict().items() if not k.endswith(DERIVED))
    if number != stored:
        raise CheckpointError(
            f"'{weights}' has {stored} values, but the network in {CONFIG} has {number}; the two "
            'files do not belong together'
        )


def _count(weights: Path) -> int:
    """Return the number of values in a safetensors file, from its header."""
    with weights.open('rb') as opened:
        kind = kind_of(opened)
    if kind != 'safetensors':
        what = 'written by torch.save' if kind in ('zip', 'legacy') else kind
        raise CheckpointError(
            f"'{weights}' is {what}, not a safetensors file; the weights of a published detector "
            'are read only from safetensors'
        )
    try:
        with safetensors.safe_open(weights, 'pt') as file:
            names = [name for name in file.keys() if not name.endswith(DERIVED)]  # noqa: SIM118
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except Exception as error:  # SafetensorError is an Exception
        raise CheckpointError(
            f"'{weights}' ({weights.stat().st_size} bytes) is truncated or damaged; download it "
            f'again ({first_line(error)})'
        ) from None
