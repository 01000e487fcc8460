"""Compare two kinds of operators on one config of each folder of mmdet.

Run it once with each kind of operators, then compare:

    EVIT_MM_OPS=compiled    python -m tests.ops.mmdet_folders --out compiled.json
    EVIT_MM_OPS=torchvision python -m tests.ops.mmdet_folders --out torchvision.json
    python -m tests.ops.mmdet_folders --compare compiled.json torchvision.json

To see how much of a difference comes from rounding, add a third result: the first kind of
operators with ``--noise 1e-7``.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import time
from multiprocessing.connection import Connection
from pathlib import Path

import evit_mm.ops  # isort: skip - before anything imports mmcv.ops

import mmcv._ext
import torch
from torch import nn

from .folder_table import compare
from .small_models import CONFIGS, build, choose, make_batch, trained_part

PREDICTIONS = ('pred_instances', 'pred_track_instances', 'pred_panoptic_seg', 'pred_feature')


def train(model: nn.Module, settings: dict, noise: float) -> dict:
    """Return the losses of one step, and the norm and a projection of each gradient."""
    model, settings = trained_part(model, settings)
    model.train()
    data = make_batch(model, settings, noise)
    total, losses = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            signs = torch.empty_like(parameter.grad).bernoulli_().mul_(2).sub_(1)
            projection = (parameter.grad * signs).sum()
            gradients[name] = [float(parameter.grad.norm()), float(projection)]
    return {'losses': {key: float(x) for key, x in losses.items()}, 'gradients': gradients}


@torch.no_grad()
def predict(model: nn.Module, settings: dict, noise: float) -> dict:
    """Return all predicted numbers of each image, and the mean of each mask."""
    model.eval()
    samples = model(**make_batch(model, settings, noise), mode='predict')
    found = {}
    samples = [x for sample in samples for x in getattr(sample, 'video_data_samples', [sample])]
    for index, sample in enumerate(samples):
        for name in PREDICTIONS:
            part = getattr(sample, name, {})
            for key, value in part.items() if hasattr(part, 'items') else [('', part)]:
                if not hasattr(value, 'shape'):
                    continue
                value = torch.as_tensor(value).float()
                value = value.flatten(-2).mean(-1) if 'mask' in key or 'seg' in key else value
                found[f'{index} {name} {key}'] = value.flatten().tolist()
    return {'found': found}


def measure(name: str, noise: float) -> dict:
    """Build a config's model and return the results of :func:`train` and :func:`predict`."""
    torch.set_num_threads(1)
    called: set[str] = set()
    for key in evit_mm.ops.operators.OPERATORS:
        setattr(mmcv._ext, key, _counted(getattr(mmcv._ext, key), key, called))
    model, settings = build(name)
    result = {}
    for stage in (predict, train):  # last, because a failed training may change the model
        called.clear()
        try:
            outcome = stage(model, settings, noise)
        except Exception as error:
            outcome = {'error': _one_line(error)}
        result[stage.__name__] = {**outcome, 'operators': sorted(called)}
    return result


def _counted(function, key: str, called: set[str]):
    def call(*args, **kwargs):
        called.add(key)
        return function(*args, **kwargs)

    return call


def _one_line(error: BaseException) -> str:
    return f'{type(error).__name__}: {error}'.strip().splitlines()[0][:200]


def _child(name: str, noise: float, memory: int, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (memory << 30, memory << 30))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        pipe.send(measure(name, noise))
    except Exception as error:
        pipe.send({'error': _one_line(error)})


def run(name: str, noise: float, seconds: float, memory: int) -> dict:
    """Measure one config in a separate process, because it may crash."""
    context = multiprocessing.get_context('fork')  # keeps the imports
    receive, send = context.Pipe(False)
    process = context.Process(target=_child, args=(name, noise, memory, send))
    process.start()
    send.close()
    result = {'error': f'exceeded {seconds:.0f} s'}
    if receive.poll(seconds):
        try:
            result = receive.recv()
        except EOFError:
            process.join()
            result = {'error': f'the process exited with status {process.exitcode}'}
    process.kill()
    process.join()
    return result


def errors_of(result: dict) -> list[str]:
    """Return the errors of one config."""
    parts = (result, result.get('train', {}), result.get('predict', {}))
    return [part['error'] for part in parts if 'error' in part]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folders', nargs='+', help='folders to run (default: all)')
    parser.add_argument('--out', type=Path, help='file for the results; folders in it are skipped')
    parser.add_argument('--noise', type=float, default=0, help='relative change of the images')
    parser.add_argument('--seconds', type=float, default=120, help='time limit for one config')
    parser.add_argument('--memory', type=int, default=8, help='memory limit for one config, in GiB')
    parser.add_argument('--budget', type=float, default=math.inf, help='seconds for all configs')
    parser.add_argument('--compare', nargs='+', type=Path, help='result files; print their table')
    args = parser.parse_args()
    if args.compare:
        first, *others = (json.loads(path.read_text()) for path in args.compare)
        print(compare(first, others))
        return
    start = time.time()
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for folder in args.folders or sorted(path.name for path in CONFIGS.iterdir() if path.is_dir()):
        if folder in results:
            continue
        begun = time.time()
        if begun - start > args.budget:
            print('stopped')
            break
        name = choose(folder)
        limits = (args.seconds, args.memory)
        result = run(name, args.noise, *limits) if name else {'error': 'no config with a model'}
        results[folder] = {'config': name, 'provided': evit_mm.ops.PROVIDED, **result}
        args.out.write_text(json.dumps(results))
        print(name or folder, f'{time.time() - begun:.1f} s', *errors_of(result), flush=True)


if __name__ == '__main__':
    main()
