"""Benchmarks of ImageNet classifiers at 224 px in all forms, one process per network.

The processes compile in parallel, because this uses mainly the CPU. Then they run one after the
other, and each times the forms of its network with interleaved calls.
"""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evit_mm.compare.benchmark import forms, machine, time_interleaved
from evit_mm.compare.benchmark.networks import with_statistics
from evit_mm.compare.benchmark.timing import Call, Row, sentence
from evit_mm.compare.published_results import TIMM_NAMES, label_of
from evit_mm.models import VARIANTS

from .worker import TIME_IS_UP, as_dict, working

LAYOUTS = ('m0', 'm4')  # measured in all memory layouts
LAST = {'timm': 'timm, channels last', 'ours': 'ours, weights in channels last too'}
TRIES, PAUSE = 3, 4.0  # when another process needs the memory for a moment


@dataclass(frozen=True)
class Sizes:
    """Sizes of a benchmark: ``side`` in pixels, ``batch`` images per call, ``rounds`` calls."""

    side: int = 224
    batch: int = 2048
    rounds: int = 9
    backend: str = 'inductor'


TINY = Sizes(side=64, batch=2, rounds=2, backend='aot_eager')


def name_of(network: str) -> str:
    """Return the label of a network."""
    return label_of(TIMM_NAMES.get(network, f'evit_{network}'))


class Forms:
    """All forms of one network, for a large batch under AMP and for one image.

    Args:
        network: A variant of EfficientViT, or timm's name of another network.
        device: Device of the network.
        sizes: Sizes of the benchmark.
    """

    def __init__(self, network: str, device: str, sizes: Sizes) -> None:
        self.network, self.device, self.sizes = network, device, sizes
        self.kind = torch.device(device).type
        self.half = torch.float16 if self.kind == 'cuda' else torch.bfloat16
        self.models = self._models()
        # most important first
        self.to_compile = [
            (size, name)
            for size in ('batch', 'one')
            for name in ('fused', 'timm')
            if name in self.models
        ]
        self.compiled: dict[tuple[str, str], Callable[[Tensor], object]] = {}
        self.faults: dict[tuple[str, str], str] = {}

    def _models(self) -> dict[str, nn.Module]:
        import timm

        torch.manual_seed(0)
        timm_name = f'efficientvit_{self.network}' if self.network in VARIANTS else self.network
        options = {'img_size': self.sizes.side} if self.network in VARIANTS else {}
        models = {'timm': timm.create_model(timm_name, **options)}
        if self.network in VARIANTS:
            from evit_mm.deploy import fuse

            models['ours'] = with_statistics(classifier(self.network))
            if self.network in LAYOUTS:
                models['ours, contiguous'] = with_statistics(classifier(self.network, False))
            models['fused'] = fuse(models['ours'])
        for model in models.values():
            model.eval().requires_grad_(False).to(self.device)
        return models

    def images(self, size: str) -> Tensor:
        """Return the input: a batch in float32, or one image in half precision."""
        shape = (self.sizes.batch if size == 'batch' else 1, 3, self.sizes.side, self.sizes.side)
        generator = torch.Generator(self.device).manual_seed(0)
        image = torch.randn(shape, generator=generator, device=self.device)
        return image if size == 'batch' else image.to(self.half)

    def model_for(self, size: str, name: str) -> nn.Module:
        """Return a model: float32 weights for a batch (AMP), half precision for one image."""
        model = self.models[name]
        if size == 'batch':
            return model
        # train() clears the attention biases that timm caches in eval mode
        return copy.deepcopy(model).to(self.half).train().eval()

    def compile(self, size: str, name: str) -> None:
        """Compile one form for one size and call it once."""
        torch._dynamo.config.recompile_limit = 64
        for left in reversed(range(TRIES)):
            try:
                model = self.model_for(size, name)
                function = torch.compile(model, dynamic=False, backend=self.sizes.backend)
                image = self.images(size)
                self.call(size, function, image)()
                self.compiled[size, name] = function
                return
            except torch.OutOfMemoryError:
                if not left:
                    raise
                self.empty_cache()
                time.sleep(PAUSE)

    def call(self, size: str, function: Callable[[Tensor], object], image: Tensor) -> Call:
        """Return a call without gradients, under AMP for a batch."""

        def run() -> object:
            with torch.no_grad():
                return function(image)

        return forms.amp(run, self.kind, self.half) if size == 'batch' else run

    def prepare(self, stop: Callable[[], bool]) -> None:
        """Compile all forms, until ``stop()`` is True."""
        for size, name in self.to_compile:
            if stop():
                self.faults.setdefault((size, name), f'not compiled: {TIME_IS_UP}')
                continue
            self._attempt((size, name), partial(self.compile, size, name))
            self.empty_cache()

    def empty_cache(self) -> None:
        """Release GPU memory for the other processes."""
        if self.kind == 'cuda':
            torch.cuda.empty_cache()

    def _attempt(self, key: tuple[str, str], function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # any error of a compiler: the other rows must still run
            traceback.print_exc()
            self.faults[key] = sentence(error)
            return None

    def measure(self, limit: float) -> Iterator[list[dict[str, Any]]]:
        """Time all forms with interleaved calls in about ``limit`` seconds.

        Yields:
            The rows of each size, see :func:`~tests.gpu.worker.as_dict`.
        """
        # as in timm's benchmark; only now, because no other process uses the GPU
        torch.backends.cudnn.benchmark = True
        for size, share in (('batch', 0.7), ('one', 0.3)):
            found = []
            rounds = self.sizes.rounds if size == 'batch' else 3 * self.sizes.rounds
            builders = self._builders(size)
            built = {name: self._attempt((size, name), build) for name, build in builders.items()}
            runs, faults = working({name: run for name, run in built.items() if run})
            self.faults.update({(size, name): fault for name, fault in faults.items()})
            peaks = {name: machine.peak_memory(run, self.device) for name, run in runs.items()}
            seconds = time_interleaved(runs, rounds, 1, share * limit)
            for name in builders:
                row = Row(
                    name_of(self.network),
                    name,
                    seconds.get(name, []),
                    self.sizes.batch if size == 'batch' else 1,
                    'timm, eager',
                    '' if name in seconds else self.faults.get((size, name), ''),
                )
                found.append(as_dict(row, size, peaks.get(name)))
            del runs, built
            self.empty_cache()
            yield found

    def _builders(self, size: str) -> dict[str, Callable[[], Call]]:
        """Return a function for each form that builds its call."""
        last = torch.channels_last

        def eager(name: str, to_last: bool = False) -> Call:
            model, image = self.model_for(size, name), self.images(size)
            if to_last:
                model = copy.deepcopy(model).to(memory_format=last)
                image = image.contiguous(memory_format=last)
            return self.call(size, model, image)

        def compiled(name: str) -> Call:
            if (size, name) not in self.compiled:
                raise RuntimeError(self.faults.get((size, name), f'not compiled: {TIME_IS_UP}'))
            return self.call(size, self.compiled[size, name], self.images(size))

        def half_weights() -> Call:
            model = copy.deepcopy(self.models['fused']).to(self.half)
            return self.call('one', model, self.images(size).to(self.half))

        def graph(function: Callable[[], Callable[[Tensor], object]]) -> Call:
            return forms.graphed(function(), self.images(size))

        def graph_of_compiled(name: str) -> Call:
            compiled(name)
            return graph(lambda: self.compiled[size, name])

        names = [
            name for name in ('timm', 'ours', 'ours, contiguous', 'fused') if name in self.models
        ]
        builders: dict[str, Callable[[], Call]] = {}
        for name in names:
            builders[f'{name}, eager'] = partial(eager, name)
            if name == 'timm' or (name == 'ours' and self.network in LAYOUTS):
                # our backbone converts only its maps, not its weights
                builders[LAST[name]] = partial(eager, name, True)
        if 'fused' in names and size == 'batch':
            builders['fused, float16 weights'] = half_weights
        for name in ('timm', 'fused'):
            if name in names:
                builders[f'{name}, compiled'] = partial(compiled, name)
        if size == 'one':
            for name in ('timm', 'ours', 'fused'):
                if name in names:
                    builders[f'{name}, CUDA graph'] = partial(
                        graph, partial(self.model_for, size, name)
                    )
            for name in ('timm', 'fused'):
                if name in names:
                    builders[f'{name}, compiled, CUDA graph'] = partial(graph_of_compiled, name)
        return builders


def classifier(arch: str, channels_last: bool = True) -> nn.Module:
    """Return EfficientViT with its ImageNet head."""
    from evit_mm.compare.complexity import CLASSIFIER_WINDOWS
    from evit_mm.models import EfficientViT, EfficientViTHead

    body = EfficientViT(arch=arch, window_sizes=CLASSIFIER_WINDOWS, channels_last=channels_last)
    return nn.Sequential(body, EfficientViTHead(body.out_channels[-1]))
