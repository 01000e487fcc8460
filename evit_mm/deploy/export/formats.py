"""The table of export formats."""

from __future__ import annotations

from .executorch_format import ExecutorchFormat
from .files import Format
from .onnx_format import OnnxFormat
from .openvino_format import OpenVinoFormat
from .torch_format import TorchFormat

FORMATS: dict[str, Format] = {
    'onnx': OnnxFormat(),
    'openvino': OpenVinoFormat(),
    'torch': TorchFormat(),
    'executorch': ExecutorchFormat(),
}
#: formats by the suffix of the file that the user gives
BY_SUFFIX = {form.suffixes[-1]: form for form in FORMATS.values()}
