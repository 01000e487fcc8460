"""Data: the built-in shapes, and the checks of a COCO-format data set."""

from .check import check_coco, check_config_data
from .shapes import SHAPE_CLASSES, make_shapes

__all__ = ['SHAPE_CLASSES', 'check_coco', 'check_config_data', 'make_shapes']
