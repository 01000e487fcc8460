"""Object detection in images, videos and camera streams."""

from .coco import coco_ids, to_coco
from .detector import Detector, load_detector_config
from .run import Prediction, predict

__all__ = [
    'Detector',
    'Prediction',
    'coco_ids',
    'load_detector_config',
    'predict',
    'to_coco',
]
