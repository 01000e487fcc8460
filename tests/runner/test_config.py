"""Misspelt keys that no library looks at are refused in one sentence."""

import pytest

from evit_mm.errors import ConfigError
from evit_mm.runner.config import check_test_keys, load_config
from tests.configs.test_configs import CONFIGS


@pytest.mark.parametrize(
    ('key', 'meant'),
    [('score_thresh', 'score_thr'), ('max_per_image', 'max_per_img'), ('nms_prev', 'nms_pre')],
)
def test_misspelt_test_keys_are_named_with_what_was_meant(key, meant):
    with pytest.raises(ConfigError, match=rf"'model.test_cfg.{key}' .did you mean '{meant}'"):
        check_test_keys({key: 1}, 'x.py')
    with pytest.raises(ConfigError, match=rf"'model.test_cfg.rcnn.{key}' .did you mean"):
        check_test_keys({'rpn': {}, 'rcnn': {key: 1}}, 'x.py')


def test_keys_of_a_head_of_ones_own_pass():
    check_test_keys({'temperature': 2.0, 'score_thr': 0.1}, 'x.py')


def test_every_own_config_passes():
    for path in CONFIGS:
        load_config(path)
