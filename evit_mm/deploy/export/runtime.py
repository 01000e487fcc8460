"""Running and evaluating exported detectors, without the network's code.

Shapes: B batch, H x W padded image, N detections.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

from ...checkpoint.reading import METADATA_KEY
from ...errors import EvitError
from .files import FORMATS, need, openvino_core


class ExportedModel:
    """A file of :func:`evit_mm.deploy.export.export`, opened.

    Args:
        file: ``.onnx`` for ONNX Runtime, ``.xml`` (with its ``.bin``) for OpenVINO.
        threads: CPU threads; None leaves it to the runtime.

    Attributes:
        metadata: What :func:`evit_mm.deploy.export.files.describe` says.

    Raises:
        EvitError: The file is missing, damaged, or not one of ours, or its runtime is not
            installed.
    """

    def __init__(self, file: str | Path, threads: int | None = None) -> None:
        self.file = Path(file)
        if not self.file.is_file():
            raise EvitError(f"'{file}' does not exist")
        openers = {FORMATS['onnx']: self._open_onnx, FORMATS['openvino']: self._open_openvino}
        if self.file.suffix not in openers:
            raise EvitError(f"'{file}' must end in {' or '.join(openers)}")
        text, self._run = openers[self.file.suffix](threads)
        self.metadata = _metadata(text)
        if not self.metadata:
            raise EvitError(
                f"'{file}' has no '{METADATA_KEY}' in its metadata; make it with tools/export.py"
            )

    def __call__(self, image: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
        """Run, with arguments and results as :class:`evit_mm.deploy.export.DetectorGraph` has them.

        Raises:
            EvitError: The file does not take this batch or size.
        """
        image, size = (np.ascontiguousarray(x, dtype=np.float32) for x in (image, size))
        try:
            return self._run(image, size)
        except Exception as error:  # the runtimes' exceptions have no common base but this
            raise EvitError(
                f"'{self.file}' does not run on an image of shape {image.shape}; with --static "
                f'it takes only that of its export ({_last_line(error)})'
            ) from None

    def _open_onnx(self, threads: int | None) -> tuple[Any, Callable]:
        runtime = need('onnxruntime')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            session = runtime.InferenceSession(
                str(self.file), options, providers=runtime.get_available_providers()
            )
        except Exception as error:  # its exceptions have no common base but this
            raise self._damaged(error) from None
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        return text, lambda image, size: session.run(None, {'image': image, 'size': size})

    def _open_openvino(self, threads: int | None) -> tuple[Any, Callable]:
        with self.file.open('rb') as file:  # of anything else it would try all formats it knows
            if b'<net' not in file.read(512):
                raise self._damaged(ValueError("it is not OpenVINO's XML"))
        core = openvino_core()
        # where the processor has bfloat16, OpenVINO computes in it unless told otherwise
        options: dict[str, Any] = {
            'PERFORMANCE_HINT': 'LATENCY',
            'INFERENCE_PRECISION_HINT': 'f32',
        }
        if threads:
            options['INFERENCE_NUM_THREADS'] = threads
        try:
            model = core.read_model(str(self.file))
            compiled = core.compile_model(model, 'CPU', options)
        except RuntimeError as error:
            raise self._damaged(error) from None
        text = None
        if model.has_rt_info([METADATA_KEY]):
            text = model.get_rt_info([METADATA_KEY]).astype(str)
        request = compiled.create_infer_request()

        def run(image: np.ndarray, size: np.ndarray) -> list[np.ndarray]:
            return [x.copy() for x in request.infer({'image': image, 'size': size}).values()]

        return text, run

    def _damaged(self, error: Exception) -> EvitError:
        return EvitError(f"'{self.file}' cannot be opened: {_last_line(error)}")


@MODELS.register_module()
class ExportedDetector(BaseModel):
    """An exported file in a detector's place, so that mmdet's evaluation runs on it.

    Args:
        file: As :class:`ExportedModel`.
        data_preprocessor: The detector's, which normalises and pads.
    """

    def __init__(self, file: str, data_preprocessor: dict) -> None:
        self.exported = ExportedModel(file)
        if 'labels' not in (names := self.exported.metadata.get('outputs', [])):
            raise EvitError(
                f"'{file}' has no NMS inside (its outputs are {names}); export it without --no-nms"
            )
        divisor = self.exported.metadata['pad_size_divisor']
        super().__init__({**data_preprocessor, 'pad_size_divisor': divisor})

    def forward(self, inputs: torch.Tensor, data_samples: list, mode: str = 'predict') -> list:
        """Return the samples with ``pred_instances`` in the original images' pixels."""
        if mode != 'predict':
            raise EvitError(f'an exported file only predicts; it has no mode {mode!r}')
        sizes = np.array([sample.img_shape[:2] for sample in data_samples])
        # images one after the other: a file made with --static takes no more
        for row, sample in enumerate(data_samples):
            outputs = self.exported(inputs[row : row + 1].cpu().numpy(), sizes[row : row + 1])
            sample.pred_instances = to_instances(outputs, sample.scale_factor)
        return data_samples


def _metadata(text: str | None) -> dict[str, Any]:
    """Return what :func:`evit_mm.deploy.export.export` wrote, nothing of anything else."""
    try:
        content = json.loads(text or '')
        return content if {'classes', 'outputs', 'pad_size_divisor'} <= set(content) else {}
    except (TypeError, ValueError):
        return {}


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def to_instances(
    outputs: list[np.ndarray], scale_factor: tuple[float, float] = (1.0, 1.0)
) -> InstanceData:
    """Return the detections of one image.

    Args:
        outputs: Boxes, scores and labels of a batch of one.
        scale_factor: Width and height of the network's image over the original's.
    """
    boxes, scores, labels = (torch.from_numpy(x[0]) for x in outputs)
    there = scores > 0
    scale = torch.tensor([*scale_factor, *scale_factor], dtype=torch.float32)
    return InstanceData(bboxes=boxes[there] / scale, scores=scores[there], labels=labels[there])
