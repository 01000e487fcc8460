"""Test-time augmentation beside predictions on mirrored and resized image files, merged by hand."""

import pickle
import shutil
from types import SimpleNamespace

import cv2
import pytest
import torch
from mmcv.ops import batched_nms
from mmengine.config import Config

from evit_mm.data import make_shapes
from evit_mm.deploy.export.evaluation import evaluate
from evit_mm.errors import ConfigError, DataError
from evit_mm.runner.config import load_config
from evit_mm.runner.data_check import DataCheckHook
from evit_mm.runner.test import test as run_test
from evit_mm.runner.tta import use_tta
from tests.conftest import ROOT, TINY, randomise
from tests.trainings import save_weights, write_config

WIDTH, HEIGHT = SIZE = (96, 64)
# the images have this size, so nothing is interpolated before they are mirrored
EXTRA = 'scale = (96, 96)\n'
PADDED = """
pad = dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0, 114.0, 114.0)))
steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96), keep_ratio=True), pad]
steps += [dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]
test_dataloader = dict(loader, dataset=dict(data, pipeline=steps))
"""
EXTRAS = {'resized': EXTRA, 'padded': EXTRA + PADDED}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    return make_shapes(folder / 'set', 1, 3, size=SIZE, quiet=True)


@pytest.fixture(scope='module')
def mirrored(data):
    copy = shutil.copytree(data, data.parent / 'mirrored')
    for file in (copy / 'val').iterdir():
        # PNG, whatever the name says: JPEG would change the pixels
        file.write_bytes(cv2.imencode('.png', cv2.imread(str(file))[:, ::-1])[1].tobytes())
    return copy


def predict(config, weights, folder, tta=None, **options):
    """Return the predictions of a test by the name of the image."""
    out = folder / 'out.pkl'
    options = {'out': str(out), 'work_dir': str(folder / 'work'), 'device': 'cpu', **options}
    evaluate(config, weights, tta=tta, **options)
    found = pickle.loads(out.read_bytes())
    return {sample['img_path'].rpartition('/')[2]: sample['pred_instances'] for sample in found}


def mirror(boxes):
    x0, y0, x1, y1 = boxes.unbind(1)
    return torch.stack([WIDTH - x1, y0, WIDTH - x0, y1], 1)


def merge(views, iou_threshold, most):
    """Return the boxes, scores and labels that NMS leaves of several ``(boxes, prediction)``."""
    boxes = torch.cat([boxes for boxes, _ in views])
    scores, labels = (torch.cat([p[key] for _, p in views]) for key in ('scores', 'labels'))
    found, kept = batched_nms(
        boxes, scores, labels, {'type': 'nms', 'iou_threshold': iou_threshold}
    )
    return found[:most, :4], found[:most, 4], labels[kept][:most]


def assert_alike(found, expected):
    for key, value in zip(('bboxes', 'scores', 'labels'), expected, strict=True):
        assert len(found[key]) == len(value) > 20
        torch.testing.assert_close(found[key], value, atol=1e-3, rtol=1e-4)


@pytest.fixture(scope='module')
def weights(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    return save_weights(write_config(folder, data), folder / 'w.pth')


@pytest.fixture(scope='module')
def views(data, mirrored, weights, tmp_path_factory):
    """The predictions on the images and on their mirrored files, by the kind of the pipeline."""
    folder = tmp_path_factory.mktemp('views')
    return {
        kind: [predict(write_config(folder, x, extra), weights, folder) for x in (data, mirrored)]
        for kind, extra in EXTRAS.items()
    }


@pytest.mark.parametrize(('kind', 'fuse'), [('resized', True), ('padded', False)])
def test_flips_are_predictions_on_mirrored_files(data, weights, views, tmp_path, kind, fuse):
    plain, flipped = views[kind]
    config = write_config(tmp_path, data, EXTRAS[kind])
    found = predict(config, weights, tmp_path, tta=[], fuse=fuse)
    test_cfg = load_config(config).model.test_cfg
    for name, prediction in found.items():
        pairs = [(plain[name]['bboxes'], plain[name])]
        pairs.append((mirror(flipped[name]['bboxes']), flipped[name]))
        expected = merge(pairs, test_cfg.nms.iou_threshold, test_cfg.max_per_img)
        assert_alike(prediction, expected)
    assert len(found) == 3


def test_scales_are_predictions_with_another_scale(data, mirrored, weights, views, tmp_path):
    extra = EXTRA + "tta_model = dict(type='DetTTAModel', tta_cfg=dict(max_per_img=70,\n"
    extra += "    nms=dict(type='nms', iou_threshold=0.3)))\n"
    sizes = []
    for folder, small in zip((data, mirrored), views['resized'], strict=True):
        config = write_config(tmp_path, folder, extra)
        large = predict(config, weights, tmp_path, cfg_options={'scale': (192, 192)})
        sizes += [small, large]
    config = write_config(tmp_path, data, extra)
    # the smaller images mirror exactly; twice the size is interpolated, alike on both sides
    found = predict(config, weights, tmp_path, tta=[1, 2])
    for name, prediction in found.items():
        boxes = [size[name]['bboxes'] for size in sizes]
        pairs = [(boxes[0], sizes[0][name]), (mirror(boxes[2]), sizes[2][name])]
        pairs += [(boxes[1], sizes[1][name]), (mirror(boxes[3]), sizes[3][name])]
        assert_alike(prediction, merge(pairs, 0.3, 70))


def test_the_config_names_what_runs_and_pictures_are_drawn(data, weights, tmp_path):
    config = write_config(tmp_path, data, PADDED)
    work = tmp_path / 'work'
    metrics = run_test(
        config, weights, show_dir=str(tmp_path / 'shown'), work_dir=str(work), tta=[0.5, 1.5]
    )
    assert 0 <= metrics['coco/bbox_mAP'] <= 1
    assert len(list((tmp_path / 'shown').rglob('*.jpg'))) == 3
    cfg = Config.fromfile(next(work.glob('*/vis_data/config.py')))
    assert cfg.model.type == 'DetTTAModel' and cfg.model.module.type == 'RetinaNet'
    assert cfg.model.tta_cfg == {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100}
    load, views = cfg.test_dataloader.dataset.pipeline
    assert (load.type, views.type) == ('LoadImageFromFile', 'TestTimeAug')
    assert [step.scale for step in views.transforms[0]] == [(48, 48), (144, 144)]
    assert [step.prob for step in views.transforms[1]] == [0, 1]
    assert [step.type for (step,) in views.transforms[2:]] == [
        'Pad',
        'LoadAnnotations',
        'PackDetInputs',
    ]
    assert 'flip_direction' in views.transforms[4][0].meta_keys
    # the training and the validation are those of the config
    assert cfg.val_dataloader.dataset.pipeline[1].type == 'Resize'


def test_each_config_of_ours_gets_its_views():
    for name in ('retinanet_evit_m4_coco', 'rtmdet_evit_m0_coco', 'yolox_evit_m0_bccd'):
        cfg = load_config(ROOT / 'configs' / f'{name}.py')
        iou = cfg.model.test_cfg.nms.iou_threshold
        use_tta(cfg, (0.75, 1))
        steps = cfg.test_dataloader.dataset.pipeline[-1].transforms
        assert [step.type for step in steps[0]] == ['Resize', 'Resize']
        assert steps[1][1].type == 'RandomFlip' and steps[-1][0].type == 'PackDetInputs'
        assert cfg.model.tta_cfg.nms.iou_threshold == iou


def test_padding_to_a_size_grows_with_the_largest_scale(data, tmp_path):
    cfg = load_config(
        write_config(tmp_path, data, PADDED.replace('pad_to_square=True', 'size=(96, 96)'))
    )
    use_tta(cfg, (0.75, 1.25))
    assert cfg.test_dataloader.dataset.pipeline[1].transforms[2][0].size == (120, 120)


def test_parts_of_the_config_come_first(data, tmp_path):
    own = "tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[\n"
    own += (
        "    [dict(type='Resize', scale=(64, 64), keep_ratio=True)], [dict(type='PackDetInputs',\n"
    )
    own += "    meta_keys=('img_id', 'img_path', 'ori_shape', 'scale_factor'))]])]\n"
    own += "tta_model = dict(type='DetTTAModel', tta_cfg=dict(max_per_img=7))\n"
    cfg = load_config(write_config(tmp_path, data, own))
    joined = {'type': 'ConcatDataset', 'datasets': [cfg.test_dataloader.dataset] * 2}
    cfg.test_dataloader.dataset = joined
    use_tta(cfg)
    assert cfg.model.tta_cfg == {'max_per_img': 7}
    for dataset in cfg.test_dataloader.dataset.datasets:
        assert dataset.pipeline[1].transforms[0][0].scale == (64, 64)
    with pytest.raises(ConfigError, match=r'tiny\.py has a tta_pipeline, so --tta 0\.5 cannot'):
        use_tta(load_config(write_config(tmp_path, data, own)), [0.5])


@pytest.mark.parametrize(
    ('change', 'scales', 'said'),
    [
        ({}, [0.0], 'scales must be positive numbers, got 0'),
        ({}, [float('nan')], 'scales must be positive numbers, got nan'),
        ({'pipeline': [0, 2, 3]}, [0.5], r'--tta 0\.5 needs a Resize step'),
        ({'type': 'ResizeShortestEdge'}, [0.5], 'cannot scale the step ResizeShortestEdge'),
    ],
)
def test_what_cannot_be_scaled_is_refused(data, tmp_path, change, scales, said):
    cfg = load_config(write_config(tmp_path, data))
    dataset = cfg.test_dataloader.dataset
    if 'pipeline' in change:
        dataset.pipeline = [dataset.pipeline[place] for place in change['pipeline']]
    elif 'type' in change:
        dataset.pipeline[1] = {'type': change['type'], 'edge': 3}
    with pytest.raises(ConfigError, match=said):
        use_tta(cfg, scales)


def test_a_model_with_masks_is_refused_before_data_is_read(tmp_path):
    config = ROOT / 'configs' / 'mask_rcnn_evit_m4_coco.py'
    weights = tmp_path / 'w.pth'
    torch.save({'state_dict': {}}, weights)
    with pytest.raises(ConfigError, match='--tta cannot merge masks'):
        run_test(config, weights, work_dir=str(tmp_path / 'work'), device='cpu', tta=[])


def test_a_truncated_image_is_found_in_all_views(data, tmp_path):
    cut = tmp_path / 'cut.jpg'
    cut.write_bytes(next((data / 'val').iterdir()).read_bytes()[:-300])
    views = [[SimpleNamespace(img_path=str(cut))], [SimpleNamespace(img_path=str(cut))]]
    with pytest.raises(DataError, match=r'cut\.jpg. is truncated'):
        DataCheckHook().before_test_iter(None, 0, {'data_samples': views})


@pytest.mark.parametrize('on_ema', [True, False])
def test_a_classifier_averages_the_scores_of_both_views(tmp_path, on_ema):
    from mmengine.registry import MODELS, init_default_scope

    size = 64
    for split, number in (('train', 1), ('val', 3)):
        for name in ('a', 'b'):
            folder = tmp_path / 'set' / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                image = torch.randint(0, 256, (size, size, 3)).numpy()
                cv2.imwrite(str(folder / f'{index}.png'), image)
    options = {
        'data_root': str(tmp_path / 'set'),
        'model.backbone.arch': {'_delete_': True, **TINY},
        'model.head.in_channels': 32,
        'model.head.num_classes': 2,
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'test_dataloader.dataset.type': 'CustomDataset',
        'test_dataloader.dataset.pipeline': [
            {'type': 'LoadImageFromFile'},
            {'type': 'PackInputs'},
        ],
        'test_evaluator.topk': (1,),
    }
    config = ROOT / 'configs' / 'evit_m0_imagenet.py'
    cfg = load_config(config, options)
    init_default_scope('mmpretrain')
    model = randomise(MODELS.build(cfg.model)).eval()
    options['custom_hooks'] = [
        {'type': 'EMAHook', 'update_buffers': True, 'evaluate_on_ema': on_ema}
    ]
    # mmengine saves the averaged weights as the model's and keeps the others beside them
    others = {name: 2 * x for name, x in model.state_dict().items()}
    averaged, plain = (model.state_dict(), others) if on_ema else (others, model.state_dict())
    plain = {'steps': torch.tensor(1), **{f'module.{name}': x for name, x in plain.items()}}
    torch.save({'state_dict': averaged, 'ema_state_dict': plain}, tmp_path / 'w.pth')
    out = tmp_path / 'out.pkl'
    arguments = {'out': str(out), 'work_dir': str(tmp_path / 'work'), 'device': 'cpu'}
    run_test(config, tmp_path / 'w.pth', cfg_options=options, tta=[], **arguments)
    found = pickle.loads(out.read_bytes())
    mean, std = (getattr(model.data_preprocessor, key).view(3, 1, 1) for key in ('mean', 'std'))
    assert len(found) == 6
    for sample in found:
        pixels = torch.from_numpy(cv2.imread(sample['img_path'])).permute(2, 0, 1).flip(0)
        views = torch.stack([pixels, pixels.flip(2)])
        with torch.no_grad():
            scores = model.head(model.backbone((views - mean) / std)).softmax(1)
        torch.testing.assert_close(sample['pred_score'], scores.mean(0), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match='for a classifier, so --tta 2 cannot scale'):
        run_test(config, None, cfg_options=options, work_dir=str(tmp_path / 'work'), tta=[2])
    with pytest.raises(ConfigError, match='--show-dir cannot draw the views of --tta'):
        run_test(config, None, cfg_options=options, show_dir=tmp_path / 'shown', tta=[])
    assert not (tmp_path / 'shown').exists()
