"""TensorBoard, MLflow and Weights & Biases beside a training's own log, by one flag.

mmengine's backends write; here is what they leave open: a missing package is named before
anything starts, a resumed run goes on in the log that it began, and each evaluation shows the
predictions on the same few images.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..errors import ConfigError
from ..utils.files import read_json_dict, write_atomically
from .resuming import resumed_from

BACKENDS = {
    'tensorboard': 'TensorboardVisBackend',
    'mlflow': 'MLflowVisBackend',
    'wandb': 'WandbVisBackend',
}
STATE = 'tracking.json'
MLFLOW_RUN = 'MLFLOW_RUN_ID'  # MLflow's own variable: the run to go on with
IMAGES = 8
SCORE = 0.3  # as tools/predict.py draws


def add_trackers(cfg: Config, trackers: Sequence[str], main: bool = True) -> None:
    """Name trackers and their hook in a config, those of a resumed run as they were.

    Args:
        cfg: Config, changed in place; ``work_dir`` and ``resume`` are settled. Options that it
            has for a backend already stay.
        trackers: Names out of :data:`~evit_mm.runner.tracking.BACKENDS`.
        main: Whether this is the process that writes.

    Raises:
        ConfigError: There is no such tracker, or its package is not installed.
    """
    for name in trackers:
        _check(name)
    state = _read_state(cfg.work_dir) if cfg.get('resume') else {}
    state.setdefault('run', f'{datetime.datetime.now():%Y%m%d_%H%M%S}')
    folder, resumed = Path(cfg.work_dir), 'wandb' in state
    options: dict[str, dict[str, Any]] = {
        'tensorboard': {'save_dir': str(folder / 'tensorboard' / state['run'])},
        'mlflow': _mlflow_options(folder / 'mlflow', 'mlflow' in state),
        'wandb': {'save_dir': str(folder / 'wandb'), 'init_kwargs': {}},
    }
    if 'wandb' in trackers:
        state.setdefault('wandb', os.urandom(4).hex())
        options['wandb']['init_kwargs'] = {
            'id': state['wandb'],
            'name': f'{folder.name}/{state["run"]}',
            'resume': 'allow',
            'allow_val_change': resumed,
        }
    if main:
        if 'mlflow' in trackers and 'mlflow' in state:
            os.environ[MLFLOW_RUN] = state['mlflow']
        _write_state(cfg.work_dir, state)
    _put(cfg, {BACKENDS[name]: options[name] for name in trackers})
    hook = {'type': 'TrackingHook', 'trackers': list(trackers), 'state': state}
    cfg.setdefault('default_hooks', {})['tracking'] = hook


def drop_trackers(cfg: Config) -> None:
    """Take trackers out of a config: an evaluation is not part of the training's log."""
    (cfg.get('default_hooks') or {}).pop('tracking', None)
    visualizer = cfg.get('visualizer') or {}
    if visualizer.get('vis_backends'):
        kept = [b for b in _backends(visualizer) if b.get('type') not in BACKENDS.values()]
        visualizer['vis_backends'] = kept


@HOOKS.register_module()
class TrackingHook(Hook):
    """Draw the first images of each evaluation for the trackers, and join a resumed run's log.

    Args:
        trackers: Names out of :data:`~evit_mm.runner.tracking.BACKENDS`.
        state: What has to be known to go on in the same log; it is kept in the work dir.
        images: How many images are drawn; always the same ones.
    """

    priority = 'LOW'

    def __init__(
        self, trackers: Sequence[str], state: dict[str, str], images: int = IMAGES
    ) -> None:
        self.trackers, self.state, self.images = tuple(trackers), state, images
        self.drawn = 0

    def before_train(self, runner: Any) -> None:
        """Tell TensorBoard where a resumed run goes on, and keep the name of MLflow's run."""
        if not is_main_process():
            return
        if 'tensorboard' in self.trackers and resumed_from(runner):
            self._forget_after(runner)
        if 'mlflow' in self.trackers:
            os.environ.pop(MLFLOW_RUN, None)
            mlflow = runner.visualizer.get_backend(BACKENDS['mlflow']).experiment
            self.state['mlflow'] = mlflow.active_run().info.run_id
            _write_state(runner.work_dir, self.state)

    def before_val_epoch(self, runner: Any) -> None:
        """Begin with the first image."""
        self.drawn = 0

    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] | None = None,
    ) -> None:
        """Draw the batch's images as long as there are too few."""
        if not is_main_process():
            return
        for index, sample in enumerate(outputs or ()):
            if self.drawn >= self.images:
                return
            picture = draw(runner.visualizer, sample, data_batch['inputs'][index])
            stem = Path(getattr(sample, 'img_path', None) or str(self.drawn)).stem
            name = f'predictions/{self.drawn:02}_{stem}'
            for tracker in self.trackers:
                backend = runner.visualizer.get_backend(BACKENDS[tracker])
                # MLflow keeps files, which need a name for each epoch
                file = f'{name}/epoch_{runner.epoch}.png' if tracker == 'mlflow' else name
                backend.add_image(file, picture, step=runner.epoch)
            self.drawn += 1

    def _forget_after(self, runner: Any) -> None:
        """Let TensorBoard drop what a killed run wrote after the checkpoint."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        writer = runner.visualizer.get_backend(BACKENDS['tensorboard']).experiment
        start = SessionLog(status=SessionLog.START)
        writer.file_writer.add_event(Event(step=runner.iter + 1, session_log=start))


def draw(visualizer: Any, sample: Any, pixels: Any) -> np.ndarray:
    """Return a picture of a prediction ``(H, W, 3)``, RGB: beside the truth, or the class on it.

    Args:
        visualizer: mmdet's or mmpretrain's; nothing is written to its backends.
        sample: Data sample with the prediction.
        pixels: What the network was given, ``(3, H, W)``; a detector's boxes are those of the
            original image, which is read again.
    """
    painter = type(visualizer)()
    painter.dataset_meta = visualizer.dataset_meta
    if hasattr(painter, 'visualize_cls'):
        image = np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8))
        return painter.visualize_cls(image, sample)
    image = mmcv.imfrombytes(get(sample.img_path), channel_order='rgb')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*out of bounds')  # a box may reach beyond
        painter.add_datasample('picture', image, sample, pred_score_thr=SCORE)
    return painter.get_image()


def _mlflow_options(folder: Path, resumed: bool) -> dict[str, Any]:
    """Keep runs in a database in the work dir, unless the environment names a server.

    mmengine's default, a folder of files, is refused by MLflow 3.
    """
    options: dict[str, Any] = {'save_dir': str(folder), 'artifact_suffix': '.log'}
    if not os.environ.get('MLFLOW_TRACKING_URI'):
        folder = folder.resolve()
        options['tracking_uri'] = f'sqlite:///{folder / "mlflow.db"}'
        options['artifact_location'] = (folder / 'artifacts').as_uri()
        # or MLflow's experiment 'Default' is taken, whose pictures go to the current folder
        options['exp_name'] = folder.parent.name
    else:
        options['tracking_uri'] = os.environ['MLFLOW_TRACKING_URI']
    if resumed:
        options['tracked_config_keys'] = []  # they are there, and MLflow refuses other values
    return options


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise ConfigError(f"--track '{name}': there are {', '.join(BACKENDS)}")
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f'--track {name} needs the package {name}: pip install {name}')


def _put(cfg: Config, backends: Mapping[str, Mapping[str, Any]]) -> None:
    if not cfg.get('visualizer'):
        kind = 'Universal' if cfg.get('default_scope') == 'mmpretrain' else 'DetLocal'
        local = {'type': 'LocalVisBackend'}
        cfg.visualizer = {'type': f'{kind}Visualizer', 'vis_backends': [local]}
    visualizer = cfg.visualizer
    own = _backends(visualizer)
    chosen = {b['type']: dict(b) for b in own if b.get('type') in backends}
    others = [backend for backend in own if backend.get('type') not in backends]
    merged = Config({kind: {'type': kind, **options} for kind, options in backends.items()})
    merged.merge_from_dict(chosen)
    visualizer['vis_backends'] = others + [merged[kind] for kind in backends]


def _backends(visualizer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    backends = visualizer.get('vis_backends') or []
    return [backends] if isinstance(backends, Mapping) else list(backends)


def _read_state(work_dir: str | Path) -> dict[str, str]:
    state = read_json_dict(Path(work_dir, STATE))
    return {key: value for key, value in state.items() if isinstance(value, str)}


def _write_state(work_dir: str | Path, state: Mapping[str, str]) -> None:
    write_atomically(Path(work_dir, STATE), json.dumps(state).encode())
