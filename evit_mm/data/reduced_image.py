"""A transform that reads JPEG files at a fraction of their size.

Importing this module registers it, and needs mmdet. :mod:`evit_mm.data.coco_dataset` imports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS

from .images import JPEG_SUFFIXES

# fractions of the size at which libjpeg can decode
FLAGS = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}
COLORS = {'color': 0, 'color_ignore_orientation': cv2.IMREAD_IGNORE_ORIENTATION}


@TRANSFORMS.register_module()
class LoadReducedImageFromFile(LoadImageFromFile):
    """Load a JPEG file at 1/2, 1/4 or 1/8 of its size if the training needs no more pixels.

    libjpeg decodes a large photo several times faster at a fraction of its size. The result is as
    if the file and its annotations had this size: boxes and polygons of the instances are divided
    too. This transform is for training pipelines only, because the boxes of a prediction would be
    those of the smaller image.

    An image is read in full if it is not a JPEG file, if it has RLE masks, or if the annotation
    file does not give its width and height correctly.

    Required keys:

    - img_path
    - height, width, instances (optional)

    Modified keys: those of ``LoadImageFromFile`` of mmcv, and instances.

    Args:
        scale: Largest ``(width, height)`` of a following ``Resize`` that keeps the aspect ratio.
            The loaded image is at least as large as the resized one.
        color_type: ``'color'`` or ``'color_ignore_orientation'``.
        **options: See ``LoadImageFromFile`` of mmcv.

    Raises:
        ValueError: ``scale`` is not a pair, or the images are not read in colour by OpenCV.
    """

    def __init__(self, scale: Sequence[int], color_type: str = 'color', **options: Any) -> None:
        super().__init__(color_type=color_type, **options)
        if np.shape(scale) != (2,) or min(scale) <= 0:
            raise ValueError(f'scale must be a positive (width, height), got {scale}')
        if color_type not in COLORS or self.imdecode_backend != 'cv2':
            raise ValueError(
                f"color_type must be {' or '.join(COLORS)} and imdecode_backend 'cv2', got "
                f"'{color_type}' and '{self.imdecode_backend}'; use LoadImageFromFile"
            )
        self.scale = tuple(scale)
        self._readers = {
            denominator: LoadImageFromFile(color_type=flag | COLORS[color_type], **options)
            for denominator, flag in FLAGS.items()
        }

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Load the image."""
        denominator = self._denominator(results)
        if denominator == 1:
            return super().transform(results)
        size = [results['height'], results['width']]
        reduced = self._readers[denominator].transform(results)
        if reduced is None:
            return None
        shape = reduced['img_shape']
        if shape != tuple(math.ceil(side / denominator) for side in size):
            return super().transform(results)
        ratio = shape[1] / size[1], shape[0] / size[0]
        instances = [_scaled(instance, ratio) for instance in results.get('instances', ())]
        return {**reduced, 'instances': instances, 'width': shape[1], 'height': shape[0]}

    def _denominator(self, results: Mapping[str, Any]) -> int:
        """Return the largest denominator for an image at least as large as the resized one."""
        sides = [results[key] for key in ('width', 'height') if key in results]
        masks = (instance.get('mask') for instance in results.get('instances', ()))
        jpeg = str(results['img_path']).lower().endswith(JPEG_SUFFIXES)
        if len(sides) < 2 or not jpeg or any(isinstance(mask, Mapping) for mask in masks):
            return 1
        ratio = min(max(self.scale) / max(sides), min(self.scale) / min(sides))
        return next((d for d in FLAGS if d * ratio <= 1), 1)

    def __repr__(self) -> str:
        return f'{super().__repr__()[:-1]}, scale={self.scale})'


def _scaled(instance: Mapping[str, Any], ratio: tuple[float, float]) -> dict[str, Any]:
    """Return an instance whose box and polygons are multiplied by ``(x, y)``."""
    scaled = dict(instance)
    if 'bbox' in scaled:
        scaled['bbox'] = [*np.multiply(scaled['bbox'], (*ratio, *ratio))]
    if 'mask' in scaled:
        scaled['mask'] = [
            [*np.reshape(np.multiply(np.reshape(polygon, (-1, 2)), ratio), -1)]
            for polygon in scaled['mask']
        ]
    return scaled
