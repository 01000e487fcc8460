"""Fetch the weights of a config before a run, and check them by hash and by fit."""

from __future__ import annotations

import re
from collections.abc import Mapping

import huggingface_hub.constants
import huggingface_hub.utils
import pooch
from mmengine.config import Config

from ...checkpoint.sources import POINT_AT_FILE, local_path
from ...errors import CheckpointError
from ...runner.build import init_backbone, load_detector
from ...runner.config import checkpoints_of

SHA256 = re.compile('[0-9a-f]{64}')


def check_weights(configs: Mapping[str, Config]) -> tuple[list[str], dict[str, str]]:
    """Fetch the ImageNet weights of configs, and load them strictly into their backbones.

    Args:
        configs: Configs by name.

    Returns:
        One sentence per error with its fix, and the SHA-256 of each file by its source.
    """
    huggingface_hub.utils.logging.set_verbosity_error()  # of an attempt to download that fails
    faults: list[str] = []
    digests: dict[str, str] = {}
    users: dict[str, list[str]] = {}
    for name, cfg in configs.items():
        for source in checkpoints_of(cfg):
            users.setdefault(source, []).append(name)
    for source, names in users.items():
        try:
            digests[f'sha256 of {source}'] = checked_digest(source)
            for name in names:
                init_backbone(configs[name])
        except CheckpointError as error:
            faults.append(f'{error}; or leave out {", ".join(names)} with --configs')
    return faults, digests


def check_detectors(
    configs: Mapping[str, Config], urls: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Fetch released detectors and load them strictly. Otherwise as :func:`check_weights`."""
    faults: list[str] = []
    digests: dict[str, str] = {}
    for name, cfg in configs.items():
        try:
            digests[f'sha256 of {urls[name]}'] = checked_digest(urls[name])
            load_detector(cfg, local_path(urls[name]))
        except CheckpointError as error:
            faults.append(f'{error}; or leave out {name} with --configs')
    return faults, digests


def checked_digest(source: str) -> str:
    """Fetch a file, and return its SHA-256 after comparing it with the published one.

    The Hugging Face hub publishes the SHA-256 of each file of weights. Its cache stores the file
    under this name. For the authors' release no hash is published.

    Raises:
        CheckpointError: The file cannot be fetched, or its content has another hash.
    """
    try:
        path = local_path(source)
    except CheckpointError as error:
        if source.startswith('http'):
            raise CheckpointError(str(error).replace(POINT_AT_FILE, '')) from None
        repository = source.replace('timm://', 'timm/').removeprefix('hf-hub:')
        folder = f'models--{repository.replace("/", "--")}'
        raise CheckpointError(
            f"cannot download '{source}' from the Hugging Face hub; on a machine with network "
            f"access, run: hf download {repository}, and copy the folder '{folder}' of its cache "
            f"to '{huggingface_hub.constants.HF_HUB_CACHE}'"
        ) from error
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint '{path}' does not exist; download it to this path (docs/reproduce.md, "
            'section Weights)'
        )
    stored = path.resolve()
    digest = pooch.file_hash(str(stored), alg='sha256')
    if SHA256.fullmatch(stored.name) and stored.name != digest:
        raise CheckpointError(
            f"'{source}' is damaged: '{stored}' has SHA-256 {digest}; delete this file and run the "
            'command again'
        )
    return digest
