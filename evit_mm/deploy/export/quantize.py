"""INT8 by static quantisation, calibrated on real images.

Only convolutions and matrix products become integer; decoding and NMS stay in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...checkpoint.reading import METADATA_KEY
from .files import need, openvino_core

QUANTIZED = ('Conv', 'Gemm', 'MatMul', 'ConvTranspose')
Inputs = tuple[np.ndarray, np.ndarray]


def quantize_onnx(source: str | Path, path: str | Path, inputs: Sequence[Inputs]) -> None:
    """Quantise an ONNX detector: int8 weights per channel, uint8 activations, QDQ nodes.

    Args:
        source: File of :func:`~evit_mm.deploy.export.files.export_onnx`.
        path: File to write.
        inputs: ``image`` and ``size`` of the calibration images.
    """
    onnx, quantization = need('onnx'), need('onnxruntime.quantization')
    shape_inference = need('onnxruntime.quantization.shape_inference')

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rows: Iterator[Inputs] = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else dict(zip(('image', 'size'), row, strict=True))

    prepared = Path(f'{path}.prepared')
    shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(prepared), str(path), Reader(), op_types_to_quantize=list(QUANTIZED), per_channel=True
    )
    prepared.unlink()
    model = onnx.load(str(path))
    props = {p.key: p.value for p in onnx.load(str(source)).metadata_props}
    onnx.helper.set_model_props(model, {METADATA_KEY: props[METADATA_KEY]})
    onnx.save_model(model, str(path))


def quantize_openvino(source: str | Path, path: str | Path, inputs: Sequence[Inputs]) -> None:
    """Quantise an OpenVINO detector by NNCF; arguments as :func:`quantize_onnx`."""
    openvino, nncf = need('openvino'), need('nncf')
    advanced = need('nncf.quantization.advanced_parameters')
    logging.getLogger('nncf').setLevel(logging.WARNING)
    model = openvino_core().read_model(str(source))
    text = model.get_rt_info([METADATA_KEY]).astype(str)
    rows: list[Any] = [{'image': image, 'size': size} for image, size in inputs]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(rows),
        subset_size=len(rows),
        preset=nncf.QuantizationPreset.MIXED,
        # per channel it takes the height of (B, H, W, C) for the channels, and the file one size
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            activations_quantization_params=advanced.QuantizationParameters(per_channel=False)
        ),
    )
    quantized.set_rt_info(text, [METADATA_KEY])
    openvino.save_model(quantized, str(path), compress_to_fp16=False)
