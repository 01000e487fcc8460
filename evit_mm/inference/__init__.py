"""Object detection in images, videos and camera streams."""

from .coco import coco_ids, to_coco
from .detector import Detections, Detector
from .run import Prediction, predict

__all__ = [
    'Detections',
    'Detector',
    'Prediction',
    'coco_ids',
    'predict',
    'to_coco',
]
