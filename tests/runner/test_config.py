"""Misspelt keys that no library looks at are refused in one sentence."""

from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from evit_mm.errors import ConfigError
from evit_mm.runner.config import check_test_keys, config_name, load_config
from tests.configs.test_configs import CONFIGS


@pytest.mark.parametrize(
    ('key', 'meant'),
    [
        ('score_thresh', 'score_thr'),
        ('max_per_image', 'max_per_img'),
        ('nms_prev', 'nms_pre'),
        ('nms_pst', 'nms_post'),
        ('min_box_size', 'min_bbox_size'),
        ('conf_thre', 'conf_thr'),
        ('mask_thr_bin', 'mask_thr_binary'),
        ('mask_thrs', 'mask_thr'),
        ('multi_labels', 'multi_label'),
        ('rcnn_', 'rcnn'),
    ],
)
def test_misspelt_test_keys_are_named_with_what_was_meant(key, meant):
    with pytest.raises(ConfigError, match=rf"'model.test_cfg.{key}' .did you mean '{meant}'"):
        check_test_keys({key: 1}, 'x.py')
    with pytest.raises(ConfigError, match=rf"'model.test_cfg.rcnn.{key}' .did you mean"):
        check_test_keys({'rpn': {}, 'rcnn': {key: 1}}, 'x.py')


def test_keys_of_a_head_of_ones_own_pass():
    check_test_keys({'temperature': 2.0, 'score_thr': 0.1}, 'x.py')


@pytest.mark.parametrize(
    'name',
    [
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
        'yolo/yolov3_d53_8xb8-ms-608-273e_coco',
        'guided_anchoring/ga-rpn_r50_fpn_1x_coco',
        'solo/solo_r50_fpn_1x_coco',
    ],
)
def test_keys_of_mmdets_own_configs_pass(name):
    path = Path(mmdet.__file__).parent / '.mim' / 'configs' / f'{name}.py'
    check_test_keys(Config.fromfile(path).model.test_cfg, 'x.py')
    check_test_keys({'multi_label': True, 'max_per_img': 3}, 'x.py')


def test_a_message_names_a_config_with_or_without_a_file():
    assert config_name(Config({})) == config_name({}) == 'the config'
    assert config_name(Config.fromfile(CONFIGS[0])) == str(CONFIGS[0])


def test_a_config_may_have_keys_of_its_own_but_a_command_line_may_not(tmp_path):
    base = next(path for path in CONFIGS if 'shapes' in path.stem)
    path = tmp_path / 'mine.py'
    path.write_text(f'_base_ = {str(base)!r}\nwork_dirs_root = "a"\nlaunchers = 1\n')
    with pytest.raises(ConfigError, match="unknown key 'launchers' .did you mean 'launcher'"):
        load_config(path)
    path.write_text(path.read_text().replace('launchers = 1\n', ''))
    cfg = load_config(path, {'runner_type': 'Runner', 'train_cfg.max_epochs': 3})
    assert (cfg.work_dirs_root, cfg.runner_type, cfg.train_cfg.max_epochs) == ('a', 'Runner', 3)
    for key, fix in (('work_dirs', '.did you mean'), ('xyz', '; remove it or correct its name')):
        with pytest.raises(ConfigError, match=f"unknown key '{key}'.*{fix}"):
            load_config(path, {key: 1})
    path.write_text(path.read_text() + 'work_dir = "own"\n')
    assert load_config(path).work_dir == 'own' and load_config(path, work_dir='b').work_dir == 'b'


@pytest.mark.parametrize('option', ['model.backbone.arch.depths', 'val_evaluator.metric.0'])
def test_an_option_below_a_value_that_is_no_dict_is_named(option):
    said = f'--cfg-options cannot be applied to .*shapes.py .*{option.split(".")[-2]}'
    base = next(path for path in CONFIGS if 'shapes' in path.stem)
    with pytest.raises(ConfigError, match=said):
        load_config(base, {option: 1})
