"""The suites of the benchmark; each suite produces one table.

Shapes: batch B, image H x W.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...deploy import fuse
from ...errors import ConfigError
from ...models import VARIANTS
from ...runner.build import set_device
from ..complexity import build_classifier, count_macs
from ..published_results import PUBLISHED, label_of
from . import detection, exports, forms, loading, machine, networks, operators, report, training
from .evaluators import time_evaluators
from .timing import (
    CALLS_OF_A_PROCESS,
    Build,
    Call,
    Row,
    Setting,
    ratio_of,
    sentence,
    time_in_processes,
    time_rows,
)

# without MixNet, because the BatchNorms after its mixed convolutions cannot be folded
PEERS = tuple(n for n in PUBLISHED if not n.startswith('evit_') and n != 'mixnet_m')
# published speedup of the first network over the second, from EfficientViT (arXiv 2305.07027)
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
DETECTOR_IMAGE = (800, 1344)
EVALUATED_IMAGES = 5000
# builds a call from the network, its input and the number of threads
Form = Callable[[nn.Module, Tensor, int], Call]
# implementation of the network, and its form
FORMS: dict[str, tuple[str, Form]] = {
    'timm, eager': ('timm', forms.eager),
    'timm, channels last': ('timm', forms.channels_last),
    'timm, compiled': ('timm', forms.compiled),
    'plain': ('plain', forms.eager),
    'plain, contiguous': ('contiguous', forms.eager),
    'fused': ('fused', forms.eager),
    'fused, compiled': ('fused', forms.compiled),
    'plain, ONNX Runtime': ('plain', forms.onnxruntime),
    'fused, ONNX Runtime': ('fused', forms.onnxruntime),
    'plain, OpenVINO': ('plain', forms.openvino),
    'fused, OpenVINO': ('fused', forms.openvino),
    'fused, OpenVINO bf16': ('fused', partial(forms.openvino, precision='bf16')),
    'fused, OpenVINO int8': ('fused', partial(forms.openvino, int8=True)),
}
# forms of the classifiers in the paper's protocol
CLASSIFIER_FORMS: dict[str, Form] = {
    'eager': forms.eager,
    'compiled': forms.compiled,
    'ONNX Runtime': forms.onnxruntime,
}
EAGER_FORMS = ('timm, eager', 'timm, channels last', 'plain', 'plain, contiguous', 'fused')


@dataclass(frozen=True)
class Suite:
    """A suite: one table of measurements."""

    title: str
    measure: Callable[[Setting], tuple[list[Row], list[str]]]  # rows, and notes below the table
    threads: int  # default number of CPU threads
    unit: str = ''  # unit of the rows' work, a key of report.UNITS


def run_suite(
    name: str,
    folder: str | Path,
    threads: int | None = None,
    rounds: int = 10,
    device: str = 'cpu',
) -> tuple[list[Row], str]:
    """Measure a suite and write its table, JSON file and chart.

    Args:
        name: One of :data:`SUITES`.
        folder: Folder for ``NAME.md``, ``NAME.json`` and ``NAME.png``.
        threads: Number of CPU threads. Default: the setting of the suite.
        rounds: Timed calls per row. Training steps use half of this number, slow detectors a
            third, and evaluations a tenth.
        device: Device of the networks, for example ``'cpu'`` or ``'cuda'``. Float32 is computed
            without TF32.

    Returns:
        The rows and the table.

    Raises:
        ConfigError: The suite does not exist, a number is not positive, or the device cannot be
            used.
    """
    if name not in SUITES:
        raise ConfigError(f"unknown suite '{name}'; choose from {', '.join(SUITES)}")
    suite = SUITES[name]
    threads = suite.threads if threads is None else threads
    if threads < 1 or rounds < 1:
        raise ConfigError(f'--threads and --rounds must be at least 1, got {threads} and {rounds}')
    set_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with machine.tf32(False):
            rows, notes = suite.measure(Setting(threads, rounds, device))
            about = machine.describe(threads, device)
    finally:
        torch.set_num_threads(before)
    about['command'] = f'python tools/benchmark.py {name} --threads {threads} --rounds {rounds}'
    if device != 'cpu':
        about['command'] += f' --device {device}'
    text = report.markdown(suite.title, rows, about, notes, suite.unit)
    report.write(Path(folder) / name, suite.title, text, rows, about)
    return rows, text


def measure_forms(setting: Setting) -> tuple[list[Row], list[str]]:
    """Time all forms of EfficientViT-M4 at the image size of a detector."""
    height, width = DETECTOR_IMAGE
    groups = {f'M4 backbone, {height}x{width}, batch 1': ('m4', (1, 3, height, width))}
    note = (
        'Each form runs in a separate process, and the calls are interleaved. "Share of limit" is '
        'relative to the rate of a large convolution in the same run. bf16 is computed in float32 '
        'if the processor has no bfloat16. int8 is calibrated on noise, only to measure its speed. '
        'The baseline is timm in eager mode.'
    )
    return _time_forms(groups, FORMS, setting), [note]


def measure_variants(setting: Setting) -> tuple[list[Row], list[str]]:
    """Time M0 to M5 of this package and of timm at 224 px."""
    batch, side = networks.BATCH, networks.SIDE
    groups = {f'{arch.upper()} backbone': (arch, (batch, 3, side, side)) for arch in VARIANTS}
    note = (
        f'Images of {side}x{side}, batch {batch}, float32. Each form runs in a separate process, '
        f'and the calls are interleaved. New processes start after {CALLS_OF_A_PROCESS} calls. The '
        'baseline is timm in eager mode.'
    )
    return _time_forms(groups, EAGER_FORMS, setting), [note]


def measure_backbones(setting: Setting) -> tuple[list[Row], list[str]]:
    """Time ImageNet classifiers in their fastest forms, with the paper's protocol."""
    batch, side = networks.BATCH, networks.SIDE
    image = torch.randn(batch, 3, side, side, device=setting.device)
    peer = label_of('mobilenetv2')  # reference row of each form
    rows: dict[str, list[Row]] = {form: [] for form in CLASSIFIER_FORMS}
    timed: list[tuple[Row, Call]] = []
    for name in (*(f'evit_{arch}' for arch in VARIANTS), *PEERS):
        cfg = networks.read_untrained(f'retinanet_{name}_coco')
        classifier: Any = build_classifier(MODELS.build(cfg.model.backbone))
        classifier = networks.with_statistics(classifier).to(setting.device)
        best = fuse(classifier) if 'evit' in name else forms.fold_batchnorms(classifier, image)
        for form, build in CLASSIFIER_FORMS.items():
            row = Row(form, label_of(name), work=batch, against=peer)
            rows[form].append(row)
            try:
                timed.append((row, build(best, image, setting.threads)))
            except Exception as error:  # compilers can raise anything; report it as a note
                row.note = sentence(error)
    time_rows(timed, setting.rounds, 2)
    found = [row for form in rows.values() for row in form]
    note = (
        f'Images of {side}x{side}, batch {batch}, float32, random weights. All forms are channels '
        'last with folded BatchNorm (for EfficientViT: `fuse`). The baseline is MobileNetV2 in the '
        'same form.'
    )
    return found, [note, _claims(found)]


def measure_evaluation(setting: Setting) -> tuple[list[Row], list[str]]:
    """Time COCO's evaluation of synthetic detections."""
    # hotcoco reads this variable at its first use
    os.environ['RAYON_NUM_THREADS'] = str(setting.threads)
    results = [time_evaluators(EVALUATED_IMAGES) for _ in range(max(1, setting.rounds // 10))]
    group = f'{EVALUATED_IMAGES} images, {results[0]["detections"]} detections'
    rows = [
        Row(group, name, [r[name]['seconds'] for r in results], against='pycocotools')
        for name in ('pycocotools', 'hotcoco')
    ]
    difference = max(result['difference'] for result in results)
    return rows, [f'The largest difference of the twelve COCO metrics is {difference:.1g}.']


SUITES = {
    'forms': Suite('EfficientViT-M4 in every form', measure_forms, 2, 'flop'),
    'variants': Suite('M0 to M5 against timm', measure_variants, 1, 'flop'),
    'backbones': Suite("Backbones by the paper's protocol", measure_backbones, 1, 'images'),
    'detection': Suite('Prediction from file to boxes', detection.measure, 2),
    'exports': Suite('Detectors in every form', exports.measure, 2),
    'training': Suite('Training steps', training.measure, 2),
    'loading': Suite('Data loading', loading.measure, 2, 'images'),
    'evaluation': Suite('COCO evaluation', measure_evaluation, 1),
    'operators': Suite('Operators of mmcv', operators.measure, 2),
}


def build_form(
    name: str, arch: str, shape: tuple[int, ...], threads: int, device: str = 'cpu'
) -> Call:
    """Build one of :data:`FORMS` of a variant for images of shape ``(B, 3, H, W)``."""
    torch.manual_seed(0)
    image = torch.randn(shape).to(device)
    which, how = FORMS[name]
    if which == 'timm':
        model = networks.timm_backbone(arch, shape[2]).eval()
    else:
        model = networks.backbone(arch, shape[2], which != 'contiguous')
    model.requires_grad_(False).to(device)
    return how(fuse(model) if which == 'fused' else model, image, threads)


def _time_forms(
    groups: Mapping[str, tuple[str, tuple[int, ...]]], names: Iterable[str], setting: Setting
) -> list[Row]:
    """Time the forms of each group, and the reference convolution of the machine."""
    timed: list[tuple[Row, Build]] = []
    for group, (arch, shape) in groups.items():
        one = torch.empty(1, *shape[1:], device='meta')
        macs = count_macs(networks.backbone(arch, shape[2]).to('meta'), one)
        for name in names:
            row = Row(group, name, work=2 * macs * shape[0], against='timm, eager')
            build = partial(build_form, name, arch, shape, setting.threads, setting.device)
            timed.append((row, build))
    note = f'3x3, {machine.CONV_CHANNELS} channels, {machine.CONV_SIDE}x{machine.CONV_SIDE}'
    convolution = Row('machine', 'convolution', work=machine.CONV_FLOP, note=note)
    timed.append((convolution, partial(machine.build_convolution, setting.device)))
    return time_in_processes(timed, setting.rounds, 2, setting.threads)


def _claims(rows: Sequence[Row]) -> str:
    """Compare the measured ratios with those of the paper."""
    sentences = []
    for first, second, form, published in PUBLISHED_RATIOS:
        row = next((row for row in rows if (row.group, row.name) == (form, first)), None)
        ratio = ratio_of(replace(row, against=second), rows) if row else None
        if ratio:
            sentences.append(f'- {first} over {second}, {form}: here {ratio[0]:.2f}, {published}')
    return '\n'.join(['Comparison with the paper:', '', *sentences])
