"""mmdet's COCO data set with a tolerant reader of annotation files.

Configs import this module by ``custom_imports`` because it needs mmdet.
:mod:`evit_mm.evaluation.coco_metric` imports it too.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import cv2
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from ..errors import DataError
from . import reduced_image  # noqa: F401 (registers LoadReducedImageFromFile)
from .coco import read_json, repaired

THIN = 10  # longer side / shorter side


class TolerantCOCO(COCO):
    """mmdet's COCO API with a tolerant reader.

    It reads UTF-8 in any locale, with or without a byte order mark, and fills in the fields that
    :func:`~evit_mm.data.coco.repaired` lists. The file is not changed.

    Raises:
        DataError: The file does not exist or is not valid JSON.
    """

    def __init__(self, annotation_file: Any = None) -> None:
        super().__init__()
        if annotation_file is None:
            return
        self.dataset = repaired(read_json(annotation_file))[0]
        with redirect_stdout(StringIO()):  # pycocotools prints two lines
            self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs


@DATASETS.register_module()
class TolerantCocoDataset(CocoDataset):
    """mmdet's CocoDataset that reads annotation files with :class:`TolerantCOCO`.

    The arguments are the same as those of CocoDataset. With a complete file, the data are equal.
    An image that becomes too thin in the pipeline is named.
    """

    COCOAPI = TolerantCOCO

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline on an image.

        Raises:
            DataError: The image is too thin to resize.
        """
        try:
            return super().prepare_data(idx)
        except cv2.error as error:  # the shorter side has become 0 pixels
            info = self.get_data_info(idx)
            width, height = info['width'], info['height']
            thin = max(width, height) >= THIN * min(width, height)
            if getattr(error, 'func', '') != 'resize' or not thin:
                raise
            raise DataError(
                f"image '{info['img_path']}' has {width}x{height} pixels and is too thin to "
                'resize; replace it or remove it from the annotations'
            ) from None
