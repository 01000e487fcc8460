"""The built-in shapes data set and the checks of COCO-format data sets."""

from .check import check_coco, check_config_data
from .shapes import SHAPE_CLASSES, make_shapes

__all__ = ['SHAPE_CLASSES', 'check_coco', 'check_config_data', 'make_shapes']
