"""Values that no library looks at are refused in one sentence."""

import pytest

from evit_mm.errors import ConfigError
from evit_mm.runner.config import check_values, load_config

from .test_configs import CONFIGS


def config(test_cfg=None, **loader):
    return {'model': {'test_cfg': test_cfg}, 'train_dataloader': loader}


@pytest.mark.parametrize('size', [0, -1, 2.5, '8', None, True])
def test_a_batch_size_that_is_none_is_refused(size):
    with pytest.raises(ConfigError, match='x.py: train_dataloader.batch_size must be .* got'):
        check_values(config(batch_size=size), 'x.py')
    check_values(config(batch_size=1), 'x.py')
    check_values(config(batch_sampler={'type': 'Own'}), 'x.py')


def test_it_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match='val_dataloader.batch_size'):
        load_config(CONFIGS[-1], {'val_dataloader.batch_size': 0})


@pytest.mark.parametrize(
    ('key', 'meant'),
    [('score_thresh', 'score_thr'), ('max_per_image', 'max_per_img'), ('nms_prev', 'nms_pre')],
)
def test_misspelt_test_keys_are_named_with_what_was_meant(key, meant):
    with pytest.raises(ConfigError, match=rf"'model.test_cfg.{key}', did you mean '{meant}'"):
        check_values(config({key: 1}), 'x.py')
    with pytest.raises(ConfigError, match=rf"'model.test_cfg.rcnn.{key}', did you mean"):
        check_values(config({'rpn': {}, 'rcnn': {key: 1}}), 'x.py')


def test_keys_of_a_head_of_ones_own_pass():
    check_values(config({'temperature': 2.0, 'score_thr': 0.1}), 'x.py')


def test_every_own_config_passes():
    for path in CONFIGS:
        load_config(path)
