"""Forms of a network for the benchmark: folded, compiled, other runtimes, other precisions.

Shapes: batch B, image H x W.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...deploy.export.files import TORCH, need
from ...deploy.export.openvino_format import openvino_core
from ...deploy.fusion import fold_conv_bn
from ...errors import ConfigError
from ...utils.provenance import need_torch
from .timing import Call

CALIBRATION_IMAGES = 8


def fold_batchnorms(model: nn.Module, image: Tensor) -> nn.Module:
    """Return a channels-last copy of a network with BatchNorm folded into its convolutions.

    This gives the networks that EfficientViT is compared with their fastest form. Parallel branches
    that timm can merge, as in RepViT, are merged. A BatchNorm is folded if its module defines it
    directly after a convolution. The activation that timm's BatchNorm layers contain is kept. The
    network must be in eval mode.

    Raises:
        RuntimeError: The copy gives other outputs on ``image``.
    """
    from timm.utils import reparameterize_model  # optional

    folded = reparameterize_model(model)
    for module in list(folded.modules()):
        before, conv = '', None
        for name, child in list(module.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(child, _BatchNorm):
                setattr(module, before, fold_conv_bn(conv, child))
                setattr(module, name, getattr(child, 'act', nn.Identity()))
            before, conv = name, child
    folded.to(memory_format=torch.channels_last).requires_grad_(False)
    with torch.no_grad():
        pairs = zip(_tensors(folded(image)), _tensors(model(image)), strict=True)
        if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max()) for a, b in pairs):
            raise RuntimeError(f'{type(model).__name__} gives other outputs with folded BatchNorm')
    return folded


def eager(model: Callable[[Any], object], image: Any, threads: int = 1) -> Call:  # noqa: ARG001
    """Return a call of the unchanged network."""

    @torch.inference_mode()
    def run() -> object:
        return model(image)

    return run


def amp(run: Call, device_type: str, dtype: torch.dtype = torch.float16) -> Call:
    """Return a call that runs under autocast."""

    def under_autocast() -> object:
        with torch.autocast(device_type, dtype):
            return run()

    return under_autocast


def channels_last(model: nn.Module, image: Tensor, threads: int) -> Call:  # noqa: ARG001
    """Return a call of the network with weights and image in channels last."""
    layout = torch.channels_last
    return eager(model.to(memory_format=layout), image.contiguous(memory_format=layout))


def compiled(model: nn.Module, image: Tensor, threads: int) -> Call:  # noqa: ARG001
    """Return a call of the network after ``torch.compile`` with frozen weights."""
    need_torch('2.7', 'The compiled form')
    torch._dynamo.config.recompile_limit = 64  # many networks of the same class are compiled
    function = torch.compile(model, dynamic=False, options={'freezing': True})

    def run() -> object:
        with torch.no_grad():
            return function(image)

    run()
    return run


def graphed(model: Callable[[Tensor], object], image: Tensor) -> Call:
    """Return a call that replays the network as a CUDA graph, with one launch for all kernels."""
    _only_on('cuda', image, 'a CUDA graph')
    fixed, stream = image.clone(), torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # warm-up: cuDNN and cuBLAS select their algorithms
            for _ in range(3):
                model(fixed)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            output = model(fixed)

    def run() -> object:
        fixed.copy_(image)
        graph.replay()
        return output

    vars(run)['model'] = model  # keep the weights alive, because each replay reads them
    return run


def _only_on(kind: str, image: Tensor, what: str) -> None:
    if image.device.type != kind:
        raise ConfigError(f'{what} needs --device {kind}, got {image.device.type}')


def onnxruntime(model: nn.Module, image: Tensor, threads: int) -> Call:
    """Return a call of the network in ONNX Runtime, on the CPU."""
    _only_on('cpu', image, 'ONNX Runtime')
    runtime = need('onnxruntime')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    with _onnx_file(model, image) as file:
        session = runtime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
    inputs = {'image': image.numpy()}
    return lambda: session.run(None, inputs)


def openvino(
    model: nn.Module, image: Tensor, threads: int, precision: str = 'f32', int8: bool = False
) -> Call:
    """Return a call of the network in OpenVINO on the CPU.

    If the processor does not support ``precision``, OpenVINO computes in float32. An int8 network
    is calibrated on noise, so only its speed is meaningful.
    """
    _only_on('cpu', image, 'OpenVINO')
    runtime = need('openvino')
    with _onnx_file(model, image) as file:
        network = runtime.convert_model(str(file))
    if int8:
        nncf = need('nncf')
        rows = [torch.randn_like(image).numpy() for _ in range(CALIBRATION_IMAGES)]
        network = nncf.quantize(network, nncf.Dataset(rows), subset_size=len(rows))
    options = {
        'INFERENCE_NUM_THREADS': threads,
        'INFERENCE_PRECISION_HINT': precision,
        'PERFORMANCE_HINT': 'LATENCY',
    }
    request = openvino_core().compile_model(network, 'CPU', options).create_infer_request()
    inputs = [image.numpy()]
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)


@contextmanager
def _onnx_file(model: nn.Module, image: Tensor) -> Iterator[Path]:
    need_torch(TORCH, 'The form for ONNX Runtime or OpenVINO')
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        file = Path(folder) / 'model.onnx'
        torch.onnx.export(
            model,
            (image,),
            str(file),
            dynamo=True,
            verbose=False,
            input_names=['image'],
            external_data=False,
        )
        yield file


def _tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)
