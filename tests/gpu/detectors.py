"""Whole detectors: prediction and training steps; and what the card can do at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from evit_mm.benchmark import detection, machine, time_interleaved, training
from evit_mm.benchmark.report import Row

from .worker import as_dict

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
    """RetinaNet-M4's prediction, mmdet's path and the fused one."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.chosen = device, TINY_CASES if tiny else PREDICTIONS
        self.rounds = 2 if tiny else 15
        self.cases: list[detection.Case] = []

    def prepare(self, stop: Callable[[], bool]) -> None:
        """Build the detectors, which predict once in it."""
        for case in detection.cases(self.device, self.chosen):
            # the pictures' file is gone when it is timed
            self.cases.append(case)
            for name in [name for name in case if 'file' in name or 'decode' in name]:
                del case[name]
            if stop():
                return

    def measure(self, limit: float) -> Iterator[list[dict[str, Any]]]:
        """Time them in turns, one size and batch after the other."""
        for case in self.cases:
            peaks = {
                name: machine.peak_memory(run, self.device)
                for name, run in case.items()
                if name.startswith('whole')
            }
            seconds = time_interleaved(case, self.rounds, 1, limit / len(self.cases))
            rows = []
            for name, values in seconds.items():
                stage, path = name.rsplit(', ', 1)
                against = f'{stage}, mmdet' if path != 'mmdet' else None
                row = Row(case.group, name, values, None, against)
                rows.append(as_dict(row, 'detection', peaks.get(name)))
            rows[0]['note'] = f'fused against mmdet: {case.agreement}'
            yield rows


class Steps:
    """Training steps in both layouts, in float32, TF32 and under AMP."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.chosen = device, TINY_CASES[1:] if tiny else STEPS
        self.rounds = 2 if tiny else 9
        self.steps: list[tuple[str, dict[str, training.Step]]] = []

    def prepare(self, stop: Callable[[], bool]) -> None:
        """Build the detectors, which take a step in it."""
        for group in training.steps(self.device, self.chosen, training.GPU_FORMS):
            self.steps.append(group)
            if stop():
                return

    def measure(self, limit: float) -> Iterator[list[dict[str, Any]]]:
        """Time them in turns, one size after the other."""
        for group, runs in self.steps:
            functions = {name: run for name, (run, _) in runs.items()}
            peaks = {name: machine.peak_memory(run, self.device) for name, run in functions.items()}
            seconds = time_interleaved(functions, self.rounds, 0, limit / len(self.steps))
            yield [
                as_dict(
                    Row(group, name, values, None, training.timm_row(name)), 'steps', peaks[name]
                )
                for name, values in seconds.items()
            ]


class Limits:
    """A copy within the card's memory, and products of large matrices."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device = device
        self.bytes, self.side = (2**20, 64) if tiny else (COPIED_BYTES, PRODUCT_SIDE)

    def prepare(self, stop: Callable[[], bool]) -> None:
        """Leave the memory to the others."""

    def measure(self, limit: float) -> Iterator[list[dict[str, Any]]]:
        """Time them in turns."""
        source = torch.zeros(self.bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        runs: dict[str, Callable[[], object]] = {'copy': lambda: target.copy_(source)}
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
