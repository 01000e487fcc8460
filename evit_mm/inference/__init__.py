"""Detecting objects in images, videos and cameras, whatever no data set knows."""

from ..data.images import IMAGE_SUFFIXES
from .coco import coco_ids, to_coco
from .detector import Detector, in_batches, load_detector_config
from .run import Prediction, predict
from .sources import VIDEO_SUFFIXES

__all__ = [
    'IMAGE_SUFFIXES',
    'VIDEO_SUFFIXES',
    'Detector',
    'Prediction',
    'coco_ids',
    'in_batches',
    'load_detector_config',
    'predict',
    'to_coco',
]
