"""Benchmarks of whole detectors, and the limits of the GPU."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch

from evit_mm.compare.benchmark import detection, machine, time_interleaved, training
from evit_mm.compare.benchmark.timing import Call, Row, sentence
from evit_mm.deploy.export.check import Agreement

from .worker import as_dict, working

PREDICTIONS = (
    ('retinanet_evit_m4_coco', (800, 1344), 1),
    ('retinanet_evit_m4_coco', (800, 1344), 8),
)
STEPS = (
    ('retinanet_evit_m4_coco', (800, 1344), 4),
    ('retinanet_evit_m4_bccd', (256, 320), 8),
)
TINY_CASES = (
    ('retinanet_lite_evit_m0_coco', (96, 160), 1),
    ('retinanet_lite_evit_m0_coco', (96, 160), 2),
)
COPIED_BYTES = 4 * 2**30
PRODUCT_SIDE = 8192


class Predictions:
    """Prediction of RetinaNet-M4 with mmdet and with the fused detector."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.chosen = device, TINY_CASES if tiny else PREDICTIONS
        self.rounds = 2 if tiny else 15
        self.cases: list[tuple[list[tuple[Row, Call]], Agreement]] = []
        self.faults: dict[str, str] = {}

    def prepare(self, stop: Callable[[], bool]) -> None:
        """Build the detectors. Each predicts once."""
        for config, size, batch in self.chosen:
            try:
                with detection.photo() as file:
                    calls, agreement = detection.prediction(config, size, batch, file, self.device)
            except Exception as error:  # any error: the other sizes must still run
                traceback.print_exc()
                group = f'{config}, {size[0]}x{size[1]}, batch {batch}'
                self.faults[group] = sentence(error)
                continue
            # the image file no longer exists during the measurement
            calls = [c for c in calls if 'file' not in c[0].name and 'decode' not in c[0].name]
            self.cases.append((calls, agreement))

    def measure(self, limit: float) -> Iterator[list[dict[str, Any]]]:
        """Time the forms with interleaved calls, separately for each size and batch."""
        for group, fault in self.faults.items():
            yield [as_dict(Row(group, 'all', note=fault), 'detection')]
        for calls, agreement in self.cases:
            able, faults = working({row.name: call for row, call in calls})
            peaks = {
                name: machine.peak_memory(run, self.device)
                for name, run in able.items()
                if name.startswith('whole')
            }
            seconds = time_interleaved(able, self.rounds, 1, limit / len(self.cases))
            rows = []
            for row, _ in calls:
                row.seconds, row.note = seconds.get(row.name, []), faults.get(row.name, '')
                rows.append(as_dict(row, 'detection', peaks.get(row.name)))
            if not rows[0]['note']:
                rows[0]['note'] = f'fused against mmdet: {agreement}'
            yield rows


class Steps:
    """Training steps in both memory layouts, in float32, TF32 and under AMP."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.chosen = device, TINY_CASES[1:] if tiny else STEPS
        self.rounds = 2 if tiny else 9
        self.steps: dict[str, dict[str, Call]] = {}
        self.faults: dict[tuple[str, str], str] = {}

    def prepare(self, stop: Callable[[], bool]) -> None:
        """Build the detectors. Each runs one step."""
        for name, size, images in self.chosen:
            group = f'{name}, {size[0]}x{size[1]}, {images} images'
            runs = self.steps.setdefault(group, {})
            for form, options in training.GPU_FORMS.items():
                try:
                    step = training.detector_step(name, size, images, options, self.device)
                    step()
                    runs[form] = step
                except Exception as error:  # any error: the other forms must still run
                    traceback.print_exc()
                    self.faults[group, form] = sentence(error)

    def measure(self, limit: float) -> Iterator[list[dict[str, Any]]]:
        """Time the forms with interleaved calls, separately for each size."""
        for group, runs in self.steps.items():
            able, faults = working(runs)
            peaks = {name: machine.peak_memory(run, self.device) for name, run in able.items()}
            seconds = time_interleaved(able, self.rounds, 0, limit / len(self.steps))
            rows = []
            for name in training.GPU_FORMS:
                row = Row(group, name, seconds.get(name, []), None, training.timm_row(name))
                row.note = faults.get(name) or self.faults.get((group, name), '')
                rows.append(as_dict(row, 'steps', peaks.get(name)))
            yield rows


class Limits:
    """A copy in GPU memory, and products of large matrices."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device = device
        self.bytes, self.side = (2**20, 64) if tiny else (COPIED_BYTES, PRODUCT_SIDE)

    def prepare(self, stop: Callable[[], bool]) -> None:
        """Allocate nothing, to leave the memory to the other processes."""

    def measure(self, limit: float) -> Iterator[list[dict[str, Any]]]:
        """Time the operations with interleaved calls."""
        source = torch.zeros(self.bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        runs: dict[str, Call] = {'copy': lambda: target.copy_(source)}
        work = {'copy': 2.0 * self.bytes}
        for name, dtype in (
            ('bfloat16', torch.bfloat16),
            ('float16', torch.float16),
            ('float32', torch.float32),
        ):
            a, b = (
                torch.randn(self.side, self.side, device=self.device).to(dtype) for _ in range(2)
            )
            runs[f'product in {name}'] = lambda a=a, b=b: a @ b
            work[f'product in {name}'] = 2.0 * self.side**3
        seconds = time_interleaved(runs, 20, 3, limit)
        yield [as_dict(Row('limits', k, v, work[k]), 'limits') for k, v in seconds.items()]
