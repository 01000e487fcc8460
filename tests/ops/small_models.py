"""mmdet's configs, built small: random weights, small images of noise, few boxes."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path

import evit_mm.ops  # noqa: F401  # isort: skip - before anything imports mmcv.ops

import mmdet
import numpy as np
import torch
from mmdet.models import BaseMOTModel
from mmdet.registry import MODELS
from mmdet.structures import ReIDDataSample
from mmdet.testing import demo_mm_inputs, demo_mm_proposals, demo_track_inputs
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
#: configs that use more operators than their folder's others, or are the smallest there
PREFERRED = re.compile(
    '_base_/models/faster-rcnn_r50_fpn.py|bytetrack_yolox_x_8xb4-80e_crowdhuman-mot17half|'
    'cascade-mask-rcnn_r50_fpn_1x|cascade-rpn_faster|centernet_r18-dcnv2|crowddet-rcnn_refine|'
    'mdpool|soft-nms|deformable-detr-refine-twostage_r50_16|detectors_cascade|atss_r50_fpn_dyhead|'
    'r50-attn1111-dcn|fcos_r50-dcn|fovea_r50_fpn_gn-head-align_4|mask-rcnn_r50_fpg-chn128|'
    'gfl_r101-dconv|mask-rcnn_r50_fpn_groie|ga-faster-rcnn_r50_fpn|htc_hrnetv2p-w18|htc_r50_fpn_1x|'
    'ld_r18|libra-faster-rcnn_r50|mask2former_r50_8xb2-lsj-50e_coco-panoptic|nashead|nasfpn|'
    'mask-rcnn_r50_fpn_pisa|reppoints-moment_r50_fpn_1x|rtmdet-ins_tiny|light_r50-dcn|sort_faster|'
    'strongsort_yolox_x_8xb4-80e_crowdhuman-mot17|anchor-based|vfnet_r50-mdconv|yolox_tiny'
)
SMALL = re.compile('r18|r50|-t-|_t_|tiny|b0|s50|w18')
LIMITS = {'nms_pre': 200, 'num': 64, 'num_queries': 100, 'max_masks_to_train': 10}
LIMITS.update(dict.fromkeys(('max_per_img', 'max_num', 'max_per_image'), 20))
TRAINED_ON_FILMS = ('QDTrack', 'MaskTrackRCNN', 'Mask2FormerVideo')


def choose(folder: str) -> str | None:
    """Return the config that stands for a folder, or None if none there has a model."""
    names = [str(path.relative_to(CONFIGS)) for path in (CONFIGS / folder).rglob('*.py')]
    names.sort(key=lambda name: (not PREFERRED.search(name), not SMALL.search(name), name))
    return next((name for name in names if 'model' in Config.fromfile(CONFIGS / name)), None)


def build(name: str) -> tuple[nn.Module, ConfigDict]:
    """Return a config's model with random weights, and its settings."""
    settings = Config.fromfile(CONFIGS / name).model
    _shrink(settings)
    init_default_scope('mmdet')
    MessageHub.get_current_instance().update_info('iter', 10000)  # BoxInst asks for it
    seed()
    model = revert_sync_batchnorm(MODELS.build(settings))
    model.init_weights()
    _randomise(model)
    return model, settings


def _shrink(node: ConfigDict | list, tests: bool = False) -> None:
    """Remove pretrained weights and large images; ask for fewer boxes, with any score."""
    for key, value in list(node.items()) if isinstance(node, dict) else list(enumerate(node)):
        if isinstance(value, dict | list):
            _shrink(value, tests or key == 'test_cfg')
        unwanted = key in ('pretrained', 'teacher_ckpt', 'batch_augments')
        if unwanted or (key == 'init_cfg' and 'Pretrained' in str(value)):
            node[key] = None
        elif value == 'MMSyncBN':  # cannot be made outside of a process group
            node[key] = 'BN'
        elif isinstance(value, str) and value.startswith('configs/'):
            node[key] = str(CONFIGS.parent / value)
        elif key in LIMITS and isinstance(value, int) and value > 0:
            node[key] = min(value, LIMITS[key])
        elif tests and key in ('score_thr', 'filter_thr'):
            node[key] = 0.0


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    """Give random values to weights that start constant or tiny.

    Otherwise residual branches return zeros, offsets are zero and all scores are equal.
    """
    for value in model.parameters():
        spread = value.std() if value.numel() > 1 else value.new_zeros(())
        if value.ndim > 1:
            wanted = value[0].numel() ** -0.5
            if spread < 0.7 * wanted:
                value.normal_(0, wanted)
        elif spread == 0:
            value.add_(torch.randn_like(value), alpha=0.1)


def seed() -> None:
    """Start all random numbers anew."""
    torch.manual_seed(0)
    np.random.seed(0)


def trained_part(model: nn.Module, settings: ConfigDict) -> tuple[nn.Module, ConfigDict]:
    """Return what a config trains: the model, or a tracker's detector."""
    if isinstance(model, BaseMOTModel) and settings.type not in TRAINED_ON_FILMS:
        images = {**settings.data_preprocessor, 'type': 'DetDataPreprocessor'}
        images.pop('use_det_processor', None)
        model.detector.data_preprocessor = MODELS.build(images)
        return model.detector, settings.detector
    return model, settings


def make_batch(model: nn.Module, settings: ConfigDict, noise: float) -> dict:
    """Return two prepared images of noise with boxes and masks, or two frames for a tracker.

    Args:
        model: In training mode or not.
        settings: Its config.
        noise: Relative change of the prepared images, in the size of rounding errors.
    """
    seed()
    data = _make_data(model, settings)
    if settings.type == 'SoftTeacher' and model.training:
        branches = ('sup', 'unsup_teacher', 'unsup_student')
        data = {key: {name: deepcopy(x) for name in branches} for key, x in data.items()}
    data = model.data_preprocessor(data, model.training)
    if noise and isinstance(data['inputs'], torch.Tensor):
        data['inputs'] = data['inputs'] * (1 + noise * torch.randn_like(data['inputs']))
    seed()
    return data


def _make_data(model: nn.Module, settings: ConfigDict) -> dict:
    classes = _classes(settings)
    if settings.type == 'BaseReID':
        samples = [ReIDDataSample().set_gt_label(index % classes) for index in range(4)]
        return {'inputs': [torch.rand(3, 256, 128) * 255 for _ in samples], 'data_samples': samples}
    side = 300 if 'SSD' in str(settings) else 128
    square = side == 300 or 'HourglassNet' in str(settings)
    shapes = [(3, side, side if square else 160)] * 2
    if isinstance(model, BaseMOTModel):
        return demo_track_inputs(1, 2, [0], shapes[0], [3], classes, with_mask=True)
    stride = 8 if 'semantic_head' in settings.get('roi_head', {}) else 1
    data = demo_mm_inputs(
        2, shapes, [3, 2], with_mask=True, with_semantic=True, sem_seg_output_strides=stride
    )
    for sample, proposals in zip(data['data_samples'], demo_mm_proposals(shapes, 20), strict=True):
        sample.gt_instances.labels = torch.arange(len(sample.gt_instances.labels)) % classes
        sample.proposals = proposals
        sample.set_metainfo({'homography_matrix': np.eye(3)})
    return data


def _classes(node: object) -> int:
    """Return how many classes all heads know, at most 10."""
    if isinstance(node, dict):
        own = [node.get(key) for key in ('num_classes', 'num_things_classes')]
        return min([*(x for x in own if isinstance(x, int)), *map(_classes, node.values()), 10])
    return min([*map(_classes, node), 10]) if isinstance(node, list) else 10
