"""ExecuTorch format for phones and embedded devices, with XNNPACK's kernels."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ...checkpoint.reading import METADATA_KEY
from .files import Format, Run, need
from .graph import Size, export_program


class ExecutorchFormat(Format):
    """A ``.pte`` file for one image size, which ends before NMS."""

    suffixes = ('.pte',)
    packages = ('executorch',)
    extra = 'executorch'
    has_nms = False
    dynamic = False  # ExecuTorch needs hours to plan the memory of a graph for any size

    def write(self, graph: nn.Module, file: Path, metadata: dict, size: Size) -> None:
        """Write the graph, with the metadata as a method that returns a text."""
        exir = need('executorch.exir', self.extra)
        xnnpack = need('executorch.backends.xnnpack.partition.xnnpack_partitioner', self.extra)
        plain = copy.deepcopy(graph).to(memory_format=torch.contiguous_format)
        # XNNPACK takes weights in no other layout, and has no kernel that adds a product in-place
        for module in plain.modules():
            for name, value in (('memory_format', torch.contiguous_format), ('in_place', False)):
                if hasattr(module, name):
                    vars(module)[name] = value
        program = export_program(plain, metadata['in_channels'], size)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            lowered = exir.to_edge_transform_and_lower(
                program,
                partitioner=[xnnpack.XnnpackPartitioner()],
                # its check of the result visits each row of each tensor, for minutes
                compile_config=exir.EdgeCompileConfig(_check_ir_validity=False),
                constant_methods={METADATA_KEY: json.dumps(metadata)},
            )
            with file.open('wb') as stream:
                lowered.to_executorch().write_to_file(stream)

    def load(self, file: Path, threads: int | None) -> tuple[str | None, Run]:
        """Open a file in ExecuTorch's runtime for Python."""
        runtime = need('executorch.runtime', self.extra).Runtime.get()
        if threads:
            library = need('executorch.extension.pybindings.portable_lib', self.extra)
            library._unsafe_reset_threadpool(threads)
        program = runtime.load_program(file)
        method, text = program.load_method('forward'), None
        if METADATA_KEY in program.method_names:
            (text,) = program.load_method(METADATA_KEY).execute([])

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            tensors = [torch.from_numpy(x) for x in inputs.values()]
            return [x.numpy().copy() for x in method.execute(tensors)]

        vars(run)['program'] = program  # it owns the memory of its methods
        return text, run
