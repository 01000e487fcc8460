"""Log training runs to TensorBoard, MLflow or Weights & Biases.

The backends of mmengine write the logs. This module adds three features: an early error for a
missing package, one continuous log for a resumed run, and pictures of the predictions on the same
few images after each evaluation.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..data.pictures import complete_palette, image_folder, picture_name, to_picture
from ..data.pipeline import dataset_reader
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
MLFLOW_RUN = 'MLFLOW_RUN_ID'  # MLflow's environment variable for the run to continue
IMAGES = 8
SCORE = 0.3  # score threshold, as in tools/predict.py


def add_trackers(cfg: Config, trackers: Sequence[str]) -> None:
    """Add trackers and their hook to a config. A resumed run continues its logs.

    Backend options in the config override the defaults. ``work_dir`` and ``resume`` must be final.

    Raises:
        ConfigError: A tracker is unknown, or its package is not installed.
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
    """Remove the trackers from a config, because testing must not write to the training log."""
    cfg.get('default_hooks', {}).pop('tracking', None)
    visualizer = cfg.get('visualizer') or {}
    backends = visualizer.get('vis_backends') or []
    visualizer['vis_backends'] = [b for b in backends if b['type'] not in BACKENDS.values()]


@HOOKS.register_module()
class TrackingHook(Hook):
    """Log pictures of each evaluation to the trackers, and continue the logs of a resumed run.

    Args:
        trackers: Names from :data:`~evit_mm.runner.tracking.BACKENDS`.
        state: Ids that are needed to continue the same logs. They are saved in the work dir.
    """

    priority = 'LOW'

    def __init__(self, trackers: Sequence[str], state: dict[str, str]) -> None:
        self.trackers, self.state = tuple(trackers), state
        self.left = 0  # number of images still to draw
        self.painter: Any = None  # a visualizer without backends
        self.read: Any = None  # an ImageReader
        self.folder = ''  # of the images
        self.saved = False

    @master_only
    def before_train(self, runner: Any) -> None:
        """Mark the resumed step in TensorBoard, and keep the id of the MLflow run."""
        if 'tensorboard' in self.trackers and resumed_from(runner):
            self._forget_after(runner)
        if 'mlflow' in self.trackers:
            os.environ.pop(MLFLOW_RUN, None)
            mlflow = runner.visualizer.get_backend(BACKENDS['mlflow']).experiment
            self.state['mlflow'] = mlflow.active_run().info.run_id

    @master_only
    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save the ids of the logs after the first iteration."""
        if not self.saved:
            write_json(Path(runner.work_dir, STATE), self.state)
        self.saved = True

    @master_only
    def before_val_epoch(self, runner: Any) -> None:
        """Reset the number of images to draw. Only detectors get pictures."""
        self.left = 0 if is_classifier(runner.cfg) else IMAGES
        if not self.left:
            return
        self.painter = type(runner.visualizer)()
        self.painter.dataset_meta = complete_palette(runner.visualizer.dataset_meta)
        dataset = runner.val_dataloader.dataset
        self.read, self.folder = dataset_reader(dataset), image_folder(dataset)

    @master_only
    def after_val_iter(
        self,
        runner: Any,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[Any] = (),
    ) -> None:
        """Draw images of the batch, with the ground truth on the left, until there are enough."""
        for sample in outputs[: self.left]:
            image = to_picture(self.read(sample.img_path))[..., ::-1]
            self.painter.add_datasample('', image, sample, pred_score_thr=SCORE)
            own = Path(picture_name(sample.img_path, self.folder)).with_suffix('')
            name = f'predictions/{IMAGES - self.left:02}_{own}'
            for tracker in self.trackers:
                backend = runner.visualizer.get_backend(BACKENDS[tracker])
                # MLflow saves files, so each epoch needs its own file name
                file = f'{name}/epoch_{runner.epoch}.png' if tracker == 'mlflow' else name
                backend.add_image(file, self.painter.get_image(), step=runner.epoch)
            self.left -= 1

    def _forget_after(self, runner: Any) -> None:
        """Make TensorBoard discard values that an earlier run wrote after the checkpoint."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        writer = runner.visualizer.get_backend(BACKENDS['tensorboard']).experiment
        start = SessionLog(status=SessionLog.START)
        writer.file_writer.add_event(Event(step=runner.iter + 1, session_log=start))


def _options(work_dir: Path, state: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the options of the backend of each tracker, with the ids of existing logs."""
    folder = work_dir.resolve() / 'mlflow'
    server = os.environ.get('MLFLOW_TRACKING_URI')
    mlflow: dict[str, Any] = {
        'save_dir': str(folder),
        # MLflow 3 rejects mmengine's default, a folder of files
        'tracking_uri': server or f'sqlite:///{folder / "mlflow.db"}',
        # MLflow's experiment 'Default' would write the pictures to the current folder
        'exp_name': work_dir.name,
        'artifact_location': None if server else (folder / 'artifacts').as_uri(),
        'artifact_suffix': '.log',
    }
    if 'mlflow' in state:
        mlflow['tracked_config_keys'] = []  # already logged; MLflow rejects changed values
    name = f'{work_dir.name}/{state["run"]}'
    wandb = {'id': state['wandb'], 'name': name, 'resume': 'allow', 'allow_val_change': True}
    return {
        'tensorboard': {'save_dir': str(work_dir / 'tensorboard' / state['run'])},
        'mlflow': mlflow,
        'wandb': {'save_dir': str(work_dir / 'wandb'), 'init_kwargs': wandb},
    }
