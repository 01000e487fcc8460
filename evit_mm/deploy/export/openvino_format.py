"""OpenVINO format: converted from ONNX, run by OpenVINO, quantised by NNCF."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...checkpoint.reading import METADATA_KEY
from .files import BFLOAT16, FLOAT16, FLOAT32, Format, Inputs, Run, need
from .graph import Size
from .onnx_format import OnnxFormat


class OpenVinoFormat(Format):
    """An ``.xml`` file with its weights in a ``.bin`` file.

    ``float16`` is the type of the stored weights. With ``bfloat16``, the processor computes in
    bfloat16 if it can, otherwise in float32.
    """

    suffixes = ('.bin', '.xml')
    packages = ('onnx', 'onnxscript', 'openvino')
    int8_packages = ('nncf',)
    int8_masks = False  # the mask AP of a trained Mask R-CNN fell from 0.355 to 0.034
    dtypes: ClassVar = dict.fromkeys((FLOAT32, FLOAT16, BFLOAT16), torch.float32)

    def write(self, graph: nn.Module, file: Path, metadata: dict, size: Size) -> None:
        """Export the graph to ONNX and convert the result to OpenVINO."""
        openvino = need('openvino')
        source = file.with_suffix('.onnx')
        OnnxFormat().write(graph, source, metadata, size)
        model = openvino.convert_model(str(source))
        model.set_rt_info(json.dumps(metadata, ensure_ascii=False), [METADATA_KEY])
        half = metadata['precision'] == FLOAT16
        openvino.save_model(model, str(file), compress_to_fp16=half)

    def load(self, file: Path, threads: int | None) -> tuple[str | None, Run]:
        """Open a file in OpenVINO, on the CPU."""
        model = openvino_core().read_model(str(file))
        text = None
        if model.has_rt_info([METADATA_KEY]):
            text = model.get_rt_info([METADATA_KEY]).astype(str)
        # by default, OpenVINO computes in bfloat16 on processors that support it
        half = json.loads(text or '{}').get('precision') == BFLOAT16
        options: dict[str, Any] = {
            'PERFORMANCE_HINT': 'LATENCY',
            'INFERENCE_PRECISION_HINT': 'bf16' if half else 'f32',
        }
        if threads:
            options['INFERENCE_NUM_THREADS'] = threads
        request = openvino_core().compile_model(model, 'CPU', options).create_infer_request()

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [x.copy() for x in request.infer(inputs).values()]

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
        quantized.set_rt_info(json.dumps(metadata, ensure_ascii=False), [METADATA_KEY])
        openvino.save_model(quantized, str(target), compress_to_fp16=False)


@cache
def openvino_core() -> Any:
    """Return the OpenVINO core that the whole process shares.

    Several cores must be destroyed in the reverse order of their creation. Otherwise the thread
    keeps a signal stack that no longer exists, and the next signal, for example SIGCHLD, kills the
    process (seen with OpenVINO 2026.4).
    """
    return need('openvino').Core()
