"""The table of the formats that a detector can be exported to."""

from __future__ import annotations

from .files import Format
from .onnx_format import OnnxFormat
from .openvino_format import OpenVinoFormat

FORMATS: dict[str, Format] = {'onnx': OnnxFormat(), 'openvino': OpenVinoFormat()}
#: the same by the suffix of the file that a user names
BY_SUFFIX = {form.suffixes[-1]: form for form in FORMATS.values()}
