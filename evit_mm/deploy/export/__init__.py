"""Trained detectors as files for ONNX Runtime and OpenVINO: written, checked, run, evaluated."""

from .graph import DetectorGraph
from .run import Exported, export
from .runtime import ExportedDetector, ExportedModel

__all__ = ['DetectorGraph', 'Exported', 'ExportedDetector', 'ExportedModel', 'export']
