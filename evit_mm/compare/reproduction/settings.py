"""The settings of a reproduction, and the configs that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from ... import __version__
from ...errors import ConfigError
from ...runner.config import load_config
from ...utils.files import write_atomically
from ...utils.package_files import find_config
from ...utils.text import counted
from ..budget import name_of
from ..runs import Run
from .coco2017 import ANN_FILES

# the rows of the paper's table, by importance for its claims
DEFAULT_CONFIGS = (
    'retinanet_evit_m4_coco',
    'retinanet_mobilenetv2_coco',
    'retinanet_spnasnet_coco',
    'retinanet_spos_coco',
    'retinanet_mobilenetv3_coco',
    'retinanet_mixnet_m_coco',
    'mask_rcnn_evit_m4_coco',
)
SEED = 0


@dataclass(frozen=True)
class Settings:
    """What all trainings or evaluations of a reproduction share.

    Attributes:
        data: Folder of COCO 2017 in COCO's own layout.
        out: Folder for the trainings, the measured cost and the table.
        gpus: Number of GPUs. 0 is the CPU, and None all GPUs of the machine.
        cfg_options: Overrides for all configs, with dotted keys.
        rehearsal: Accept other data than COCO 2017. The table then says so.

    Raises:
        ConfigError: The machine has fewer GPUs, or an override is the task of another option.
    """

    data: str = 'data/coco'
    out: Path = Path('work_dirs/reproduce')
    gpus: int | None = None
    cfg_options: Mapping[str, Any] = field(default_factory=dict)
    rehearsal: bool = False

    def __post_init__(self) -> None:
        present = torch.cuda.device_count()
        if self.gpus is not None and not 0 <= self.gpus <= present:
            has = counted(present, 'GPU') if present else 'no GPU'
            raise ConfigError(
                f'--gpus {self.gpus}: this machine has {has}; give a number from 0 (CPU) to '
                f'{present}'
            )
        if self.gpus is None and not present:
            raise ConfigError(
                'no GPU found; add --gpus 0 to use the CPU, on which an evaluation takes hours and '
                'a training weeks'
            )
        for key in ('data_root', 'work_dir', 'resume', 'load_from'):
            if key in self.cfg_options:
                option = {'data_root': '--data', 'work_dir': '--out'}.get(key)
                fix = f'use {option}' if option else 'remove it; an interrupted run resumes itself'
                raise ConfigError(f'--cfg-options {key}: {fix}')

    @property
    def num_gpus(self) -> int:
        """Number of GPUs, 0 for the CPU."""
        return torch.cuda.device_count() if self.gpus is None else self.gpus

    @property
    def data_name(self) -> str:
        """What the figures were measured on."""
        return f'rehearsal on {Path(self.data).name}' if self.rehearsal else 'COCO val2017'

    @property
    def device(self) -> str:
        """Name of the GPU, or ``cpu``."""
        return torch.cuda.get_device_name() if self.num_gpus else 'cpu'

    def configs(self, names: Sequence[str]) -> dict[str, Config]:
        """Return configs of the project, with the data and the overrides, by their names."""
        return {find_config(name).stem: self._config(name) for name in names}

    def _config(self, name: str) -> Config:
        path = find_config(name)
        if Config.fromfile(path).get('train_ann_file') != ANN_FILES['train']:
            raise ConfigError(
                f"--configs {name}: '{path}' does not train a detector on COCO 2017; give configs "
                f'such as {DEFAULT_CONFIGS[0]}'
            )
        options = {**self.cfg_options, 'data_root': f'{Path(self.data).absolute()}/'}
        return load_config(path, options, str(self.run(path.stem).folder))

    def run(self, name: str) -> Run:
        """Return the place of the training of a config."""
        return Run(name_of(name), SEED, self.out / 'runs' / name)

    def config_file(self, name: str) -> Path:
        """Return the file with all values of a config, which the training reads."""
        return self.out / 'configs' / f'{name}.py'

    def write_config(self, name: str, cfg: Config) -> None:
        """Write the file of a config.

        Raises:
            ConfigError: A training with other values has begun.
        """
        file, text = self.config_file(name), cfg.dump()
        if (
            self.run(name).folder.exists()
            and file.is_file()
            and file.read_text(encoding='utf-8') != text
        ):
            raise ConfigError(
                f"config {name} differs from '{file}', with which its training began; choose "
                'another --out, or restore the config'
            )
        write_atomically(file, text.encode())

    def images_per_step(self, cfg: Config) -> int:
        """Return the number of images of one optimizer step."""
        return max(self.num_gpus, 1) * cfg.train_dataloader.batch_size

    def scaling(self, cfg: Config) -> list[str]:
        """Return ``['--auto-scale-lr']`` if a step has not the images of the authors' recipe."""
        same = self.images_per_step(cfg) == cfg.auto_scale_lr.base_batch_size
        return [] if same else ['--auto-scale-lr']

    def record(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that must stay the same in a folder, as JSON values."""
        return {
            'data': str(Path(self.data).resolve()),
            'gpus': self.num_gpus,
            'cfg_options': dict(self.cfg_options),
            'rehearsal': self.rehearsal,
            'version': __version__,
            **facts,
        }

    def facts(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the text below the table says about the settings."""
        record = self.record(facts)
        shown = (key for key in record if key not in ('data', 'cfg_options', 'rehearsal'))
        return {key: record[key] for key in shown}

    def notices(self) -> list[str]:
        """Return what the reader of the table must know before the figures."""
        found = []
        if self.rehearsal:
            found.append(
                f'**This is a rehearsal on {Path(self.data).name}, not COCO 2017.** The measured '
                'figures say nothing about the published ones.'
            )
        if self.cfg_options:
            options = ', '.join(f'{key}={value}' for key, value in self.cfg_options.items())
            found.append(
                f'**These settings differ from the configs of the project: {options}.** Compare '
                'with the published figures only if they cannot change the result.'
            )
        return found
