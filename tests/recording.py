"""Hooks for the tests: write each iteration's loss to a file, or die between two iterations."""

import json
import os
import signal

from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from evit_mm.errors import DataError


@HOOKS.register_module()
class RecordLossHook(Hook):
    """Append ``[iteration, loss averaged over processes]`` to a file of JSON lines."""

    def __init__(self, path):
        self.path = path

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        loss = outputs['loss'].detach().cpu().float()
        all_reduce(loss, 'mean')
        if runner.rank == 0:
            with open(self.path, 'a') as file:
                file.write(json.dumps([runner.iter, loss.item()]) + '\n')


@HOOKS.register_module()
class KillHook(Hook):
    """Kill the process without warning after an iteration."""

    priority = 'LOWEST'

    def __init__(self, after_iter):
        self.after_iter = after_iter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.after_iter:
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class LevelHook(Hook):
    """Replace all figures of an evaluation by the same one."""

    priority = 'VERY_HIGH'

    def after_val_epoch(self, runner, metrics=None):
        metrics.update(dict.fromkeys(metrics, 0.25))


@HOOKS.register_module()
class FatalHook(Hook):
    """Let one process die or raise after its first iteration, or have a NaN in its second."""

    def __init__(self, rank, how):
        self.rank, self.how = rank, how

    def before_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        inner = model.loss

        def loss(*args, **kwargs):
            terms = inner(*args, **kwargs)
            if runner.iter == 1:
                terms['loss_cls'] = [term * float('nan') for term in terms['loss_cls']]
            return terms

        if runner.rank == self.rank and self.how == 'nan':
            model.loss = loss

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank == self.rank and self.how in ('kill', 'raise'):
            if self.how == 'kill':
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("'x.jpg' is what rank 1 stumbled over")


def read_losses(path):
    """Return the losses by iteration; a later line of the same iteration wins."""
    with open(path) as file:
        return dict(json.loads(line) for line in file)
