"""TensorBoard, MLflow and Weights & Biases beside a training's own log, by one flag.

mmengine's backends write; here is what they leave open: a missing package is named before
anything starts, a resumed run goes on in the log that it began, and each evaluation shows the
predictions on the same few images.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..errors import ConfigError
from ..utils.files import read_json_dict, write_json
from .config import is_classifier
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


def add_trackers(cfg: Config, trackers: Sequence[str]) -> None:
    """Name trackers and their hook in a config, those of a resumed run as they were.

    Options that the config has for a backend already stay; ``work_dir`` and ``resume`` are settled.
    """
    for name in trackers:
        if name not in BACKENDS:
            raise ConfigError(f"unknown --track '{name}'; choose from {', '.join(BACKENDS)}")
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f'--track {name} needs the package {name}; run pip install {name}')
    state = read_json_dict(Path(cfg.work_dir, STATE)) if cfg.get('resume') else {}
    state.setdefault('run', f'{datetime.datetime.now():%Y%m%d_%H%M%S}')
    state.setdefault('wandb', os.urandom(4).hex())
    if 'mlflow' in state:
        os.environ[MLFLOW_RUN] = state['mlflow']
    options = _options(Path(cfg.work_dir), state)
    backends = {backend['type']: backend for backend in cfg.visualizer.vis_backends}
    for name in trackers:
        kind = BACKENDS[name]
        backend = Config({'type': kind, **options[name]})
        backend.merge_from_dict(backends.get(kind, {}))
        backends[kind] = backend.to_dict()
    cfg.visualizer.vis_backends = list(backends.values())
    hook = {'type': 'TrackingHook', 'trackers': list(trackers), 'state': state}
    cfg.default_hooks.tracking = hook


def drop_trackers(cfg: Config) -> None:
    """Take trackers out of a config: an evaluation is not part of the training's log."""
    cfg.get('default_hooks', {}).pop('tracking', None)
    visualizer = cfg.get('visualizer') or {}
    backends = visualizer.get('vis_backends') or []
    visualizer['vis_backends'] = [b for b in backends if b['type'] not in BACKENDS.values()]


@HOOKS.register_module()
class TrackingHook(Hook):
    """Draw the first images of each evaluation for the trackers, and join a resumed run's log.

    Args:
        trackers: Names out of :data:`~evit_mm.runner.tracking.BACKENDS`.
        state: What has to be known to go on in the same log; it is kept in the work dir.
    """

    priority = 'LOW'

    def __init__(self, trackers: Sequence[str], state: dict[str, str]) -> None:
        self.trackers, self.state = tuple(trackers), state
        self.left = 0  # images that are still to be drawn
        self.painter: Any = None  # a visualizer without backends

    @master_only
    def before_train(self, runner: Any) -> None:
        """Tell TensorBoard where a resumed run goes on, and keep the name of MLflow's run."""
        if 'tensorboard' in self.trackers and resumed_from(runner):
            self._forget_after(runner)
        if 'mlflow' in self.trackers:
            os.environ.pop(MLFLOW_RUN, None)
            mlflow = runner.visualizer.get_backend(BACKENDS['mlflow']).experiment
            self.state['mlflow'] = mlflow.active_run().info.run_id
        write_json(Path(runner.work_dir, STATE), self.state)

    def before_val_epoch(self, runner: Any) -> None:
        """Begin with the first image; pictures are a detector's."""
        self.left = 0 if is_classifier(runner.cfg) else IMAGES
        self.painter = type(runner.visualizer)()
        self.painter.dataset_meta = runner.visualizer.dataset_meta

    @master_only
    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] = (),
    ) -> None:
        """Draw the batch's images as long as there are too few, the truth to their left."""
        for sample in outputs[: self.left]:
            image = mmcv.imread(sample.img_path, channel_order='rgb')
            self.painter.add_datasample('', image, sample, pred_score_thr=SCORE)
            name = f'predictions/{IMAGES - self.left:02}_{Path(sample.img_path).stem}'
            for tracker in self.trackers:
                backend = runner.visualizer.get_backend(BACKENDS[tracker])
                # MLflow keeps files, which need a name for each epoch
                file = f'{name}/epoch_{runner.epoch}.png' if tracker == 'mlflow' else name
                backend.add_image(file, self.painter.get_image(), step=runner.epoch)
            self.left -= 1

    def _forget_after(self, runner: Any) -> None:
        """Let TensorBoard drop what a killed run wrote after the checkpoint."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        writer = runner.visualizer.get_backend(BACKENDS['tensorboard']).experiment
        start = SessionLog(status=SessionLog.START)
        writer.file_writer.add_event(Event(step=runner.iter + 1, session_log=start))


def _options(work_dir: Path, state: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the options of each tracker's backend, by which a resumed run finds its log."""
    folder = work_dir.resolve() / 'mlflow'
    server = os.environ.get('MLFLOW_TRACKING_URI')
    mlflow: dict[str, Any] = {
        'save_dir': str(folder),
        # mmengine's default, a folder of files, is refused by MLflow 3
        'tracking_uri': server or f'sqlite:///{folder / "mlflow.db"}',
        # the pictures of MLflow's own experiment 'Default' go to the current folder
        'exp_name': work_dir.name,
        'artifact_location': None if server else (folder / 'artifacts').as_uri(),
        'artifact_suffix': '.log',
    }
    if 'mlflow' in state:
        mlflow['tracked_config_keys'] = []  # they are there, and MLflow refuses other values
    name = f'{work_dir.name}/{state["run"]}'
    wandb = {'id': state['wandb'], 'name': name, 'resume': 'allow', 'allow_val_change': True}
    return {
        'tensorboard': {'save_dir': str(work_dir / 'tensorboard' / state['run'])},
        'mlflow': mlflow,
        'wandb': {'save_dir': str(work_dir / 'wandb'), 'init_kwargs': wandb},
    }
