"""Export of trained detectors to ONNX Runtime and OpenVINO: write, check, run, evaluate."""

from .graph import DetectorGraph
from .run import Exported, export
from .runtime import ExportedDetector, ExportedModel

__all__ = ['DetectorGraph', 'Exported', 'ExportedDetector', 'ExportedModel', 'export']
