"""Apply the test pipeline of a config to images in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

from ..errors import DataError


def test_pipeline(cfg: Config) -> Callable[[np.ndarray], dict[str, Any]]:
    """Return a function that applies the test pipeline of a config to an image.

    The function takes pixels ``(H, W, 3)``, BGR, uint8, and returns a dict with ``inputs``
    ``(3, h, w)`` and ``data_samples``. It raises a DataError if the image is too thin to resize.
    """
    from mmcv.transforms import Compose
    from mmdet.utils import get_test_pipeline_cfg

    steps = [s for s in get_test_pipeline_cfg(cfg) if 'LoadAnnotations' not in str(s['type'])]
    pipeline = Compose([{'type': 'mmdet.LoadImageFromNDArray'}, *steps[1:]])

    def prepare(pixels: np.ndarray) -> dict[str, Any]:
        try:
            return pipeline({'img': pixels, 'img_id': 0})
        except cv2.error:
            height, width = pixels.shape[:2]
            raise DataError(f'{width}x{height} pixels are too thin to resize') from None

    return prepare
