"""PyTorch format: a ``torch.export`` program, which runs without this package and without mmdet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from ...checkpoint.reading import METADATA_KEY
from .files import BFLOAT16, FLOAT16, FLOAT32, Format, Run
from .graph import Size, export_program


class TorchFormat(Format):
    """A ``.pt2`` file of ``torch.export.save``, which ends before NMS."""

    suffixes = ('.pt2',)
    dtypes: ClassVar = {
        FLOAT32: torch.float32,
        FLOAT16: torch.float16,
        BFLOAT16: torch.bfloat16,
    }
    has_nms = False  # PyTorch has no NMS; the operator is in torchvision

    def write(self, graph: nn.Module, file: Path, metadata: dict, size: Size) -> None:
        """Write the program, with the metadata as an extra file."""
        program = export_program(graph, metadata['in_channels'], size)
        torch.export.save(program, file, extra_files={METADATA_KEY: json.dumps(metadata)})

    def load(self, file: Path, threads: int | None) -> tuple[str | None, Run]:
        """Open a file in PyTorch, on the CPU."""
        if threads:
            torch.set_num_threads(threads)
        extra = {METADATA_KEY: ''}
        program = torch.export.load(file, extra_files=extra)
        # the guards of the example refuse sizes that the program computes correctly
        module = program.module(check_guards=False)

        @torch.inference_mode()
        def run(image: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
            return [x.numpy() for x in module(torch.from_numpy(image), torch.from_numpy(size))]

        return extra[METADATA_KEY] or None, run
