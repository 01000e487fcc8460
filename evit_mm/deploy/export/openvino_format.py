"""OpenVINO format: converted from ONNX, run by OpenVINO, quantised by NNCF."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ...checkpoint.reading import METADATA_KEY
from .files import Format, Inputs, Run, Size, need
from .onnx_format import OnnxFormat


class OpenVinoFormat(Format):
    """An ``.xml`` file with its weights in a ``.bin`` file; ``half`` stores them in float16."""

    suffixes = ('.bin', '.xml')
    packages = ('onnx', 'onnxscript', 'openvino')
    int8_packages = ('nncf',)

    def write(
        self, detector: nn.Module, file: Path, metadata: dict, size: Size, half: bool
    ) -> None:
        """Export the detector to ONNX and convert the result to OpenVINO."""
        openvino = need('openvino')
        graph = file.with_suffix('.onnx')
        OnnxFormat().write(detector, graph, metadata, size, half=False)
        model = openvino.convert_model(str(graph))
        model.set_rt_info(json.dumps(metadata), [METADATA_KEY])
        openvino.save_model(model, str(file), compress_to_fp16=half)

    def load(self, file: Path, threads: int | None) -> tuple[str | None, Run]:
        """Open a file in OpenVINO, on the CPU and in float32."""
        # by default, OpenVINO computes in bfloat16 on processors that support it
        options: dict[str, Any] = {
            'PERFORMANCE_HINT': 'LATENCY',
            'INFERENCE_PRECISION_HINT': 'f32',
        }
        if threads:
            options['INFERENCE_NUM_THREADS'] = threads
        model = openvino_core().read_model(str(file))
        request = openvino_core().compile_model(model, 'CPU', options).create_infer_request()

        def run(image: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
            return [x.copy() for x in request.infer({'image': image, 'size': size}).values()]

        text = None
        if model.has_rt_info([METADATA_KEY]):
            text = model.get_rt_info([METADATA_KEY]).astype(str)
        return text, run

    def quantize(self, source: Path, target: Path, metadata: dict, inputs: Inputs) -> None:
        """Quantise with NNCF."""
        openvino, nncf = need('openvino'), need('nncf')
        advanced = need('nncf.quantization.advanced_parameters')
        logging.getLogger('nncf').setLevel(logging.WARNING)
        model = openvino_core().read_model(str(source))
        quantized = nncf.quantize(
            model,
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            # per channel, NNCF mistakes the height of (B, H, W, C) for the channels, and the file
            # then accepts only one image size
            advanced_parameters=advanced.AdvancedQuantizationParameters(
                activations_quantization_params=advanced.QuantizationParameters(per_channel=False)
            ),
        )
        quantized.set_rt_info(json.dumps(metadata), [METADATA_KEY])
        openvino.save_model(quantized, str(target), compress_to_fp16=False)


@cache
def openvino_core() -> Any:
    """Return the OpenVINO core that the whole process shares.

    Several cores must be destroyed in the reverse order of their creation. Otherwise the thread
    keeps a signal stack that no longer exists, and the next signal, for example SIGCHLD, kills the
    process (seen with OpenVINO 2026.4).
    """
    return need('openvino').Core()
