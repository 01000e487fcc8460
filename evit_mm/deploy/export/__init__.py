"""Export of trained detectors and classifiers: write, check, run, evaluate."""

from .classification import ClassifierGraph
from .graph import DetectorGraph
from .run import Exported, export
from .runtime import ExportedClassifier, ExportedDetector, ExportedModel

__all__ = [
    'ClassifierGraph',
    'DetectorGraph',
    'Exported',
    'ExportedClassifier',
    'ExportedDetector',
    'ExportedModel',
    'export',
]
