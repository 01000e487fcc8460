import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from evit_mm.data.pipeline import test_pipeline as make_pipeline  # not a test
from evit_mm.errors import DataError
from tests.conftest import ROOT


def test_pixels_in_memory_go_the_way_of_a_file():
    init_default_scope('mmdet')
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_evit_m4_coco.py')
    prepare = make_pipeline(cfg)
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[..., 0] = 200  # blue
    found = prepare(pixels)
    assert found['inputs'].shape == (3, 667, 1333)  # as large as fits into 1333x800
    assert found['inputs'].amax((1, 2)).tolist() == [200, 0, 0]
    sample = found['data_samples']
    assert sample.ori_shape == (300, 600) and sample.img_shape == (667, 1333)
    assert sample.img_id == 0 and 'bboxes' not in sample.gt_instances
    with pytest.raises(DataError, match='^9000x1 pixels are too thin to resize$'):
        prepare(np.zeros((1, 9000, 3), np.uint8))
