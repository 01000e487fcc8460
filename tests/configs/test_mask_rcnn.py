"""Mask R-CNN: its config beside mmdet's and the authors', its data check, a run on real COCO."""

import json
from pathlib import Path

import cv2
import mmdet
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evit_mm import inference
from evit_mm.data import check_config_data, make_shapes
from evit_mm.errors import DataError
from evit_mm.runner.config import load_config
from evit_mm.runner.test import test as run_test
from evit_mm.runner.train import train
from tests.coco_mini import assert_loss_falls, write_config
from tests.conftest import ROOT
from tests.recording import read_losses

CONFIG = ROOT / 'configs' / 'mask_rcnn_evit_m4_coco.py'
MMDET = Path(mmdet.__file__).parent / '.mim' / 'configs'


def build(model_cfg):
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    model_cfg.backbone.init_cfg = None
    return MODELS.build(model_cfg)


def test_heads_and_pipelines_are_mmdets():
    ours = load_config(CONFIG)
    theirs = Config.fromfile(MMDET / 'mask_rcnn' / 'mask-rcnn_r50_fpn_1x_coco.py')
    for key in ('type', 'data_preprocessor', 'rpn_head', 'roi_head', 'train_cfg', 'test_cfg'):
        assert ours.model[key] == theirs.model[key], key
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        # reads the same files as CocoDataset
        theirs[loader].dataset.update(type='TolerantCocoDataset', metainfo={})
        assert ours[loader] == theirs[loader], loader
    for evaluator in (ours.val_evaluator, ours.test_evaluator):
        assert evaluator.metric == ['bbox', 'segm']
    assert ours.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'


def test_schedule_is_retinanets():
    ours, retina = (
        load_config(CONFIG.with_name(f'{name}_evit_m4_coco.py'))
        for name in ('mask_rcnn', 'retinanet')
    )
    for key in ('train_cfg', 'param_scheduler', 'optim_wrapper', 'auto_scale_lr'):
        assert ours[key] == retina[key], key
    assert ours.model.backbone == retina.model.backbone


def test_names_are_those_of_the_authors_detector_file():
    model = build(load_config(CONFIG).model)
    retina = build(load_config(CONFIG.with_name('retinanet_evit_m4_coco.py')).model)
    theirs = build(Config.fromfile(MMDET / 'mask_rcnn' / 'mask-rcnn_r50_fpn_1x_coco.py').model)
    convs = [f'lateral_convs.{i}' for i in range(3)] + [f'fpn_convs.{i}' for i in range(3)]
    convs += [f'{kind}.{i}' for kind in ('extra_trans_convs', 'extra_fpn_convs') for i in (0, 1)]
    found = {name.split('.')[0] for name in model.state_dict()}
    assert found == {'backbone', 'neck', 'rpn_head', 'roi_head'}
    assert set(model.neck.state_dict()) == {
        f'{conv}.conv.{part}' for conv in convs for part in ('weight', 'bias')
    }
    assert set(model.backbone.state_dict()) == set(retina.backbone.state_dict())
    for part in ('rpn_head', 'roi_head'):
        shapes = [
            {name: x.shape for name, x in getattr(m, part).state_dict().items()}
            for m in (model, theirs)
        ]
        assert shapes[0] == shapes[1], part


def test_levels_have_the_strides_of_anchors_and_rois():
    model = build(load_config(CONFIG).model).eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.rand(1, 3, 128, 192))
    strides = [(128 // x.shape[2], 192 // x.shape[3]) for x in maps]
    assert strides == model.rpn_head.prior_generator.strides
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        assert [(s, s) for s in extractor.featmap_strides] == strides[:4]


@pytest.fixture
def shapes_config(tmp_path):
    """The config on drawn shapes, and the annotation file of each split."""
    root = make_shapes(tmp_path / 'shapes', 8, 4, size=(64, 64), quiet=True)
    cfg = load_config(CONFIG)
    classes = ('circle', 'square', 'triangle', 'star', 'cross')
    for split in ('train', 'val'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.data_root = str(root)
        dataset.ann_file = f'annotations/instances_{split}.json'
        dataset.data_prefix = {'img': split}
        dataset.metainfo = {'classes': classes}
    cfg.val_evaluator.ann_file = str(root / 'annotations' / 'instances_val.json')
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 5
    files = {split: root / 'annotations' / f'instances_{split}.json' for split in ('train', 'val')}
    return cfg, files


@pytest.mark.parametrize('split', ['train', 'val'])
@pytest.mark.parametrize('segmentation', [None, [], [[1, 2, 3, 4]], [1, 2, 3, 4, 5, 6], {}])
def test_data_check_asks_for_segmentations_where_masks_are_loaded(
    shapes_config, split, segmentation
):
    cfg, files = shapes_config
    check_config_data(cfg)
    coco = json.loads(files[split].read_text())
    coco['annotations'][0]['segmentation'] = segmentation
    del coco['annotations'][1]['segmentation']
    files[split].write_text(json.dumps(coco))
    first, second = (annotation['id'] for annotation in coco['annotations'][:2])
    with pytest.raises(DataError) as error:
        check_config_data(cfg)
    fault = str(error.value).split('\n')[1:]
    assert len(fault) == 1 and fault[0].startswith(f'  {split}: ')
    number = len(coco['annotations'])
    assert f'2 of {number} annotations have no valid segmentation' in fault[0]
    assert f'{first}, {second}' in fault[0]
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        for step in loader.dataset.pipeline:
            step.pop('with_mask', None)
    cfg.val_evaluator.metric = 'bbox'  # 'segm' compares masks, too
    check_config_data(cfg)


def test_data_check_ignores_masks_that_mmdet_leaves_out(shapes_config):
    cfg, files = shapes_config
    coco = json.loads(files['train'].read_text())
    coco['annotations'][0].update(area=0, segmentation=[])
    files['train'].write_text(json.dumps(coco))
    check_config_data(cfg)


def test_data_check_counts_the_classes_of_both_roi_heads(shapes_config):
    cfg, _ = shapes_config
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 80
    with pytest.raises(DataError) as error:
        check_config_data(cfg)
    for head in ('bbox_head', 'mask_head'):
        assert f'set model.roi_head.{head}.num_classes=5' in str(error.value)


def test_masks_are_written_as_coco_rle():
    masks = torch.rand(3, 20, 30) > 0.5
    instances = InstanceData(
        bboxes=torch.tensor([[1.0, 2.0, 11.0, 8.0]] * 3),
        scores=torch.rand(3),
        labels=torch.tensor([0, 1, 0]),
        masks=masks,
    )
    entries = inference.to_coco(instances, 7, 'a.jpg', ('cat', 'dog'), [17, 18])
    for entry, mask in zip(json.loads(json.dumps(entries)), masks.numpy(), strict=True):
        assert np.array_equal(mask_api.decode(entry['segmentation']), mask)
    del instances.masks
    assert (
        'segmentation' not in inference.to_coco(instances, 7, 'a.jpg', ('cat', 'dog'), [17, 18])[0]
    )


def annotated_images(data, folder):
    """Write COCO files of the images whose objects all have a segmentation; some here have not."""
    files = {}
    for split in ('train', 'val'):
        coco = json.loads((data / 'annotations' / f'instances_{split}2017.json').read_text())
        bare = {a['image_id'] for a in coco['annotations'] if not a.get('segmentation')}
        coco['images'] = [i for i in coco['images'] if i['id'] not in bare]
        coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] not in bare]
        files[split] = folder / f'{split}.json'
        files[split].write_text(json.dumps(coco))
    return files


def coco_ap(truth, results, kind):
    """Return the AP that pycocotools itself finds."""
    found = json.loads(results.read_text())
    if kind == 'segm':  # else pycocotools takes areas from the boxes
        found = [{k: v for k, v in entry.items() if k != 'bbox'} for entry in found]
    evaluation = COCOeval(truth, truth.loadRes(found), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


def test_evaluator_measures_boxes_and_masks(real_data, tmp_path):
    """Two of three true objects, their masks cut in half in every second image."""
    from mmdet.datasets import CocoDataset
    from mmdet.registry import METRICS

    init_default_scope('mmdet')
    ann_file = annotated_images(real_data('coco_mini'), tmp_path)['val']
    cfg = load_config(CONFIG).val_evaluator
    cfg.update(ann_file=str(ann_file), outfile_prefix=str(tmp_path / 'found'))
    metric = METRICS.build(cfg)
    metric.dataset_meta = CocoDataset.METAINFO
    truth = COCO(str(ann_file))
    labels = {truth.cats[c]['name']: c for c in truth.cats}
    labels = [labels[name] for name in CocoDataset.METAINFO['classes']]
    samples = []
    for number, (image_id, image) in enumerate(truth.imgs.items()):
        objects = [a for a in truth.imgToAnns[image_id] if not a['iscrowd'] and a['id'] % 3]
        masks = np.zeros((len(objects), image['height'], image['width']), bool)
        boxes = np.zeros((len(objects), 4))
        for i, annotation in enumerate(objects):
            x, y, w, h = annotation['bbox']
            boxes[i] = x, y, x + w, y + h
            masks[i] = truth.annToMask(annotation)
            if number % 2:
                masks[i, : round(y + h / 2)] = False
        found = {
            'bboxes': torch.from_numpy(boxes),
            'scores': torch.ones(len(objects)),
            'labels': torch.tensor([labels.index(a['category_id']) for a in objects]),
            'masks': torch.from_numpy(masks),
        }
        size = image['height'], image['width']
        samples.append({'img_id': image_id, 'ori_shape': size, 'pred_instances': found})
    metric.process({}, samples)
    metrics = metric.evaluate(len(samples))
    ap = {kind: coco_ap(truth, tmp_path / f'found.{kind}.json', kind) for kind in ('bbox', 'segm')}
    assert 0.2 < ap['segm'] < ap['bbox'] < 0.9
    for kind in ap:
        assert metrics[f'coco/{kind}_mAP'] == pytest.approx(ap[kind], abs=5e-4)


@pytest.mark.slow
def test_trains_evaluates_boxes_and_masks_and_predicts(real_data, tmp_path):
    data = real_data('coco_mini')
    record = tmp_path / 'losses.jsonl'
    config = write_config(tmp_path / 'mini.py', CONFIG.stem, data, record)
    with pytest.raises(DataError, match='have no valid segmentation'):
        train(config, str(tmp_path / 'unused'), device='cpu')
    files = annotated_images(data, tmp_path)
    with config.open('a') as file:
        file.write(
            f"train_dataloader['dataset']['ann_file'] = {str(files['train'])!r}\n"
            f"val_dataloader['dataset']['ann_file'] = {str(files['val'])!r}\n"
            f"val_evaluator['ann_file'] = {str(files['val'])!r}\n"
            "val_dataloader['dataset']['indices'] = 6\n"
            "train_pipeline[2]['scale'] = test_pipeline[1]['scale'] = (160, 96)\n"
            "default_hooks['checkpoint'] = dict(interval=5, save_optimizer=False)\n"
            # fewer regions, for the time they take; hardly trained, it is sure of none
            'model.update(train_cfg=dict(rcnn=dict(sampler=dict(num=32))))\n'
            'model.update(test_cfg=dict(rpn=dict(max_per_img=100), '
            'rcnn=dict(score_thr=0.0, max_per_img=10)))\n'
        )
    work = tmp_path / 'work'
    train(config, str(work), seed=0, device='cpu')
    assert_loss_falls(read_losses(record))
    (checkpoint,) = work.glob('best_coco_bbox_mAP*.pth')

    metrics = run_test(
        config,
        checkpoint,
        out=str(tmp_path / 'found.json'),
        show_dir=str(tmp_path / 'pictures'),
        work_dir=str(work),
        device='cpu',
    )
    figures = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    assert set(metrics) >= {f'coco/{kind}_{f}' for kind in ('bbox', 'segm') for f in figures}
    boxes, masks = (
        json.loads((tmp_path / name).read_text()) for name in ('found.json', 'found.segm.json')
    )
    assert len(boxes) == len(masks) == 6 * 10
    assert not any('segmentation' in entry for entry in boxes)
    assert all('segmentation' in entry for entry in masks)
    assert not (tmp_path / 'found.bbox.json').exists()
    assert len(list((tmp_path / 'pictures').glob('*.jpg'))) == 6

    name = json.loads(files['val'].read_text())['images'][0]['file_name']
    picture = data / 'val2017' / name
    out = tmp_path / 'out'
    results, faults, _ = inference.predict(checkpoint, picture, out, config, 0.0, device='cpu')
    assert not faults and len(results) == 10
    assert json.loads((out / 'results.json').read_text()) == results
    pixels, drawn = (cv2.imread(str(p)).astype(int) for p in (picture, out / name))
    height, width = pixels.shape[:2]
    union = np.zeros((height, width), bool)
    for entry in results:
        assert entry['segmentation']['size'] == [height, width]
        mask = mask_api.decode(entry['segmentation']).astype(bool)
        x, y, w, h = entry['bbox']
        left, top, mask_w, mask_h = mask_api.toBbox(entry['segmentation'])
        if mask.any():
            assert left >= x - 1 and top >= y - 1
            assert left + mask_w <= x + w + 1 and top + mask_h <= y + h + 1
        union |= mask
    changed = np.abs(drawn - pixels).max(axis=2) > 20  # more than JPEG does
    assert union.any()
    assert changed[union].mean() > 0.5  # filled, not only outlined
