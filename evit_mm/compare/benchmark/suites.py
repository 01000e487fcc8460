"""What is measured: each suite is one table.

Shapes: B batch, H x W image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from ...errors import ConfigError
from ...utils.package_files import project_path
from . import forms, machine, report
from .evaluators import time_evaluators
from .report import Row
from .timing import CALLS_OF_A_PROCESS, median_and_quartiles, time_in_processes, time_interleaved

VARIANTS = tuple(f'm{i}' for i in range(6))
PEERS = ('mobilenetv2', 'mobilenetv3', 'efficientnet_b0', 'spnasnet', 'spos')
# how many times as fast the first is as the second, after EfficientViT (arXiv 2305.07027)
PUBLISHED_RATIOS = (
    ('EfficientViT-M3', 'MobileNetV2', 'eager', 'published 3.0 on an Intel CPU, 2.5 on a V100'),
    ('EfficientViT-M5', 'EfficientNet-B0', 'eager', 'published 1.9 on an Intel CPU, 2.3 on a V100'),
    ('EfficientViT-M5', 'EfficientNet-B0', 'ONNX Runtime', 'published 2.1'),
    (
        'EfficientViT-M5',
        'MobileNetV3-Large',
        'eager',
        'published 1.45 on an Intel CPU, 1.40 on a V100',
    ),
)
BATCH, SIDE = 16, 224
DETECTOR_IMAGE = (800, 1344)
EVALUATED_IMAGES = 5000


# whose network, and how it is called: takes the network, its input and the threads
FORMS: dict[str, tuple[str, Callable[[nn.Module, Tensor, int], forms.Run]]] = {
    'timm, eager': ('timm', forms.eager_on),
    'timm, channels last': ('timm', forms.channels_last),
    'timm, compiled': ('timm', forms.compiled),
    'plain': ('plain', forms.eager_on),
    'plain, contiguous': ('contiguous', forms.eager_on),
    'fused': ('fused', forms.eager_on),
    'fused, compiled': ('fused', forms.compiled),
    'plain, ONNX Runtime': ('plain', forms.onnxruntime),
    'fused, ONNX Runtime': ('fused', forms.onnxruntime),
    'plain, OpenVINO': ('plain', forms.openvino),
    'fused, OpenVINO': ('fused', forms.openvino),
    'fused, OpenVINO bf16': ('fused', partial(forms.openvino, precision='bf16')),
    'fused, OpenVINO int8': ('fused', partial(forms.openvino, int8=True)),
}


@dataclass(frozen=True)
class Suite:
    """A table.

    Attributes:
        title: Its heading.
        measure: Takes threads, rounds and the device; returns the rows and sentences for below
            the table.
        threads: CPU threads unless others are asked for.
        unit: As :func:`~evit_mm.compare.benchmark.report.markdown` has it.
    """

    title: str
    measure: Callable[[int, int, str], tuple[list[Row], list[str]]]
    threads: int
    unit: str


def run(
    name: str,
    folder: str | Path,
    threads: int | None = None,
    rounds: int = 10,
    device: str = 'cpu',
) -> tuple[list[Row], str]:
    """Measure a suite and write its table, JSON and picture.

    Args:
        name: One of :data:`SUITES`.
        folder: Where to write ``NAME.md``, ``NAME.json`` and ``NAME.png``.
        threads: CPU threads; default the suite's.
        rounds: Timed calls of each row; half of them for training steps, a third for whole
            detectors that take seconds, and evaluations once in ten.
        device: Where the networks are, ``'cpu'``, ``'cuda'``, ...; float32 without TF32.

    Returns:
        The rows and the table.

    Raises:
        ConfigError: There is no such suite, a number is not positive, or the device cannot be
            used.
    """
    from ...runner.build import set_device

    if name not in SUITES:
        raise ConfigError(f"there is no suite '{name}'; there are {', '.join(SUITES)}")
    suite = SUITES[name]
    threads = suite.threads if threads is None else threads
    if threads < 1 or rounds < 1:
        raise ConfigError(f'--threads and --rounds must be positive, got {threads} and {rounds}')
    set_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with machine.full_float32():
            rows, notes = suite.measure(threads, rounds, device)
            about = machine.describe(threads, device)
    finally:
        torch.set_num_threads(before)
    about['command'] = f'python tools/benchmark.py {name} --threads {threads} --rounds {rounds}'
    if device != 'cpu':
        about['command'] += f' --device {device}'
    convolution = next((row for row in rows if row.name == 'convolution'), None)
    limit = None
    if convolution is not None and convolution.work:
        limit = convolution.work / median_and_quartiles(convolution.seconds)[0]
    text = report.markdown(suite.title, rows, about, notes, limit, suite.unit)
    report.write(Path(folder), name, text, rows, about, partial(report.draw, suite.title, rows))
    return rows, text


def measure_forms(threads: int, rounds: int, device: str = 'cpu') -> tuple[list[Row], list[str]]:
    """Time EfficientViT-M4 at a detector's size in every form."""
    shape = (1, 3, *DETECTOR_IMAGE)
    group = f'M4 backbone, {DETECTOR_IMAGE[0]}x{DETECTOR_IMAGE[1]}, batch 1'
    jobs = [(group, 'm4', shape, name) for name in FORMS]
    rows = _timed(jobs, threads, rounds, device)
    notes = [
        'Each form runs in a process of its own, in turns with the others. The share is of the '
        'rate of a large convolution in the same run. bf16 is what OpenVINO computes where '
        'the processor has bfloat16, elsewhere float32; int8 was calibrated on noise, for its time '
        'alone.'
    ]
    return rows, notes


def measure_variants(threads: int, rounds: int, device: str = 'cpu') -> tuple[list[Row], list[str]]:
    """Time M0 to M5 against timm's at 224 px."""
    shape = (BATCH, 3, SIDE, SIDE)
    names = ('timm, eager', 'timm, channels last', 'plain', 'plain, contiguous', 'fused')
    jobs = [(f'{arch.upper()} backbone', arch, shape, name) for arch in VARIANTS for name in names]
    notes = [
        f'{SIDE}x{SIDE}, batch {BATCH}, float32, each in a process of its own, in turns, with new '
        f'processes after {CALLS_OF_A_PROCESS} calls.'
    ]
    return _timed(jobs, threads, rounds, device), notes


def measure_backbones(
    threads: int, rounds: int, device: str = 'cpu'
) -> tuple[list[Row], list[str]]:
    """Time ImageNet classifiers by the paper's protocol, each in its best forms."""
    from mmengine.registry import MODELS, init_default_scope

    from ...deploy import fuse
    from ...runner.config import load_config
    from ..complexity import build_classifier
    from ..published_results import label_of

    image = torch.randn(BATCH, 3, SIDE, SIDE, device=device)
    runs: dict[str, Callable[[], forms.Run]] = {}
    for name in (*(f'evit_{arch}' for arch in VARIANTS), *PEERS):
        init_default_scope('mmdet')
        cfg = load_config(config_path(f'retinanet_{name}_coco'))
        cfg.model.backbone.init_cfg = None
        classifier = build_classifier(MODELS.build(cfg.model.backbone))
        if classifier is None:
            raise ConfigError(f"'{name}' has no classifier")
        classifier = with_statistics(classifier).to(device)
        label = label_of(name)
        best = fuse(classifier) if 'evit' in name else forms.fold_batchnorms(classifier, image)
        runs[f'{label}, eager'] = partial(forms.eager, best, image)
        runs[f'{label}, compiled'] = partial(forms.compiled, best, image, threads)
        runs[f'{label}, ONNX Runtime'] = partial(forms.onnxruntime, best, image, threads)
    built, faults = {}, {}
    for name, build in track(runs.items(), 'preparing', len(runs), transient=True):
        try:
            built[name] = build()
        except Exception as error:  # a compiler may fail in any way; the rest goes on
            faults[name] = f'{type(error).__name__}: {(str(error).splitlines() or [""])[0][:120]}'
    seconds = time_interleaved(built, rounds, 2)
    rows = []
    for name in runs:
        label, form = name.rsplit(', ', 1)
        # ratios to MobileNetV2 in the same form
        peer = label_of('mobilenetv2')
        rows.append(Row(form, label, seconds.get(name, []), BATCH, peer, faults.get(name, '')))
    rows.sort(key=lambda row: ('eager', 'compiled', 'ONNX Runtime').index(row.group))
    notes = [
        f'{SIDE}x{SIDE}, batch {BATCH}, float32, random weights. "eager" is channels last with '
        'BatchNorm folded, for EfficientViT by `fuse`; "compiled" and "ONNX Runtime" run the same. '
        'Times faster: than MobileNetV2 in the same form.',
        _claims(rows),
    ]
    return rows, notes


def measure_training(
    threads: int,  # noqa: ARG001
    rounds: int,
    device: str = 'cpu',
) -> tuple[list[Row], list[str]]:
    """Time training steps of detectors with our backbone and with timm's."""
    from .training import backbone_steps, steps, timm_row

    rows = []
    for group, runs in chain(steps(device), backbone_steps(device)):
        functions = {name: step for name, (step, _) in runs.items()}
        seconds = time_interleaved(functions, max(2, rounds // 2), 1)
        rows += [
            Row(group, name, seconds[name], None, timm_row(name), f'{kept / 2**20:.0f} MiB kept')
            for name, (_, kept) in runs.items()
        ]
    notes = [
        'One step: forward, loss, backward; of a backbone alone the loss is the sum of its maps. '
        '"Ours" is in its default layout, channels last. "Kept" is what the forward pass holds for '
        'the backward, weights aside. AMP and the memory of a GPU: not run.'
    ]
    return rows, notes


def measure_detection(
    threads: int,  # noqa: ARG001
    rounds: int,
    device: str = 'cpu',
) -> tuple[list[Row], list[str]]:
    """Time the whole prediction by mmdet's own path and by the fused detector, by stage."""
    from .detection import cases

    rows, notes = [], []
    for case in cases(device):
        few = max(2, rounds // 3) if case.slow else rounds
        seconds = time_interleaved(case, few, 1)
        for name, values in seconds.items():
            stage, path = name.rsplit(', ', 1)
            against = f'{stage}, mmdet' if path != 'mmdet' else None
            rows.append(Row(case.group, name, values, None, against))
        notes.append(f'{case.group}: {case.agreement}.')
    notes.append(
        'Random weights, the scores scaled so that about a thousand pass the threshold; "fused" '
        'against "mmdet" on the same weights. A JPEG photograph of 640x480 is decoded and resized.'
    )
    return rows, notes


def measure_evaluation(
    threads: int,
    rounds: int,
    device: str = 'cpu',  # noqa: ARG001
) -> tuple[list[Row], list[str]]:
    """Time COCO's evaluation of made detections."""
    os.environ['RAYON_NUM_THREADS'] = str(threads)  # hotcoco's, which reads it at its first use
    results = [time_evaluators(EVALUATED_IMAGES) for _ in range(max(1, rounds // 10))]
    group = f'{EVALUATED_IMAGES} images, {results[0]["detections"]} detections'
    rows = [
        Row(
            group,
            name,
            [r[name]['load'] + r[name]['evaluate'] for r in results],
            None,
            'pycocotools',
        )
        for name in ('pycocotools', 'hotcoco')
    ]
    difference = max(result['difference'] for result in results)
    return rows, [f"The largest difference of COCO's twelve figures is {difference:.1g}."]


def measure_operators(
    threads: int,  # noqa: ARG001
    rounds: int,
    device: str = 'cpu',  # noqa: ARG001
) -> tuple[list[Row], list[str]]:
    """Time mmcv's operators, compiled and by evit_mm.ops."""
    from .operators import OURS, THEIRS, calls

    rows = []
    for label, functions in calls():
        for name, seconds in time_interleaved(functions, rounds, 1).items():
            rows.append(Row(label, name, seconds, None, THEIRS if name == OURS else None))
    note = (
        "On random boxes and maps of the sizes of a detector. RetinaNet predicts on mmdet's path."
    )
    return rows, [note]


SUITES = {
    'forms': Suite('EfficientViT-M4 in every form', measure_forms, 2, 'flop'),
    'variants': Suite("M0 to M5 against timm's", measure_variants, 1, 'flop'),
    'backbones': Suite("Backbones by the paper's protocol", measure_backbones, 1, 'images'),
    'detection': Suite('From the file to the boxes', measure_detection, 2, ''),
    'training': Suite('Training steps', measure_training, 2, ''),
    'evaluation': Suite("COCO's evaluation", measure_evaluation, 1, ''),
    'operators': Suite("mmcv's operators", measure_operators, 2, ''),
}


def _timed(
    jobs: Sequence[tuple[str, str, tuple[int, ...], str]],
    threads: int,
    rounds: int,
    device: str,
) -> list[Row]:
    """Time forms of variants and the machine's limits, each in its process.

    Args:
        jobs: Group, variant, shape of the input and name of the form of each row.
        threads: CPU threads.
        rounds: Timed calls of each.
        device: Where the networks are.
    """
    edges = {name: work for name, (_, work) in machine.limits(device).items()}
    builders: dict[Any, Callable[[], forms.Run]] = {
        (group, name): partial(_build_form, name, arch, shape, threads, device)
        for group, arch, shape, name in jobs
    }
    builders.update({name: partial(_build_limit, name, device) for name in edges})
    seconds, faults = time_in_processes(builders, rounds, 2, threads)
    rows = []
    for group, arch, shape, name in jobs:
        key, work = (group, name), 2 * _macs(arch, shape)
        row = Row(group, name, seconds.get(key, []), work, 'timm, eager', faults.get(key, ''))
        rows.append(row)
    return rows + [_edge(name, seconds[name], work) for name, work in edges.items()]


def _build_form(
    name: str, arch: str, shape: tuple[int, ...], threads: int, device: str = 'cpu'
) -> forms.Run:
    from ...deploy import fuse

    machine.without_tf32()
    torch.manual_seed(0)
    image = torch.randn(shape).to(device)
    which, how = FORMS[name]
    if which == 'timm':
        model = timm_backbone(arch, shape[2]).eval().requires_grad_(False).to(device)
    else:
        model = backbone(arch, shape[2], which != 'contiguous').requires_grad_(False).to(device)
        if which == 'fused':
            model = fuse(model)
    return how(model, image, threads)


def _build_limit(name: str, device: str) -> forms.Run:
    machine.without_tf32()
    return machine.limits(device)[name][0]


def _edge(name: str, seconds: list[float], work: float) -> Row:
    if name == 'convolution':
        return Row('machine', name, seconds, work, None, '3x3, 256 channels, 100x100')
    rate = work / median_and_quartiles(seconds)[0]
    return Row('machine', name, seconds, None, None, f'copied at {rate / 1e9:.1f} GB/s')


def backbone(arch: str, side: int, channels_last: bool = True) -> nn.Module:
    """Return our backbone for images of a size, in eval mode."""
    from ...models import EfficientViT
    from ..complexity import CLASSIFIER_WINDOWS

    windows = CLASSIFIER_WINDOWS if side == SIDE else None
    model = EfficientViT(arch=arch, window_sizes=windows, channels_last=channels_last)
    return with_statistics(model)


def timm_backbone(arch: str, side: int) -> nn.Module:
    """Return timm's implementation of the same network."""
    import timm

    # windows of 4 in the last stage at 224 px, of 7 beyond, as in ours; timm 1.0.31 and later take
    # any size of image then
    size = SIDE if side == SIDE else 512
    return timm.create_model(f'efficientvit_{arch}', features_only=True, img_size=size)


def with_statistics(model: nn.Module) -> nn.Module:
    """Give BatchNorm weights other than zero, with which a branch would compute nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.5, generator=generator)
    return model.eval()


def _macs(arch: str, shape: tuple[int, ...]) -> int:
    from ...models import EfficientViT
    from ..complexity import CLASSIFIER_WINDOWS, count_macs

    windows = CLASSIFIER_WINDOWS if shape[2] == SIDE else None
    model = EfficientViT(arch=arch, window_sizes=windows).to('meta').eval()
    return count_macs(model, torch.empty(1, *shape[1:], device='meta')) * shape[0]


def config_path(name: str) -> Path:
    """Return the path of one of the project's configs."""
    return project_path('configs') / f'{name}.py'


def _claims(rows: Sequence[Row]) -> str:
    """Put the paper's ratios beside ours."""
    by_name = {(row.group, row.name): row.seconds for row in rows if row.seconds}
    sentences = []
    for first, second, form, published in PUBLISHED_RATIOS:
        pair = [by_name.get((form, name)) for name in (first, second)]
        if all(pair):
            ratio = median_and_quartiles([b / a for a, b in zip(*pair, strict=True)])[0]
            sentences.append(f'{first} over {second}, {form}: here {ratio:.2f}, {published}')
    return '; '.join(sentences) + '.'


__all__ = ['SUITES', 'Suite', 'run']
