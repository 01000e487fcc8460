"""Two-stage detectors as one graph find what mmdet's own way through the network finds."""

import copy
import importlib.util
import json
from pathlib import Path

import cv2
import mmdet
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import evit_mm.ops  # noqa: F401  # isort: skip
from evit_mm.data import make_shapes
from evit_mm.deploy.export.check import compare_detections
from evit_mm.deploy.export.two_stage import (
    TwoStageGraph,
    _extract,
    paste_masks,
    two_stage_translations,
)
from evit_mm.errors import ConfigError
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, TINY, randomise

CLASSES = 5
MMDET = Path(mmdet.__file__).parent / '.mim' / 'configs'


def config(masks=True):
    """Return the model of Mask R-CNN, or of Faster R-CNN, in the smallest size."""
    model = load_config(ROOT / 'configs' / 'mask_rcnn_evit_m4_coco.py').model
    model.backbone = dict(type='EfficientViT', arch=dict(TINY))
    model.neck.update(in_channels=list(TINY['embed_dims']), out_channels=16)
    model.rpn_head.update(in_channels=16, feat_channels=16)
    roi_head = model.roi_head
    for part in ('bbox_roi_extractor', 'mask_roi_extractor'):
        roi_head[part].update(out_channels=16)
    roi_head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=CLASSES)
    roi_head.mask_head.update(
        in_channels=16, conv_out_channels=16, num_convs=1, num_classes=CLASSES
    )
    if not masks:
        model.type = 'FasterRCNN'
        del roi_head.mask_head, roi_head.mask_roi_extractor
    return model


def changed(model, options):
    whole = Config(dict(model=model))
    whole.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    return whole.model


def build(model):
    """Build a detector with weights that give scores of every size."""
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    detector = randomise(MODELS.build(copy.deepcopy(model)), gain=0.7).eval()
    with torch.no_grad():  # scores far apart, and boxes that are not slivers
        detector.rpn_head.rpn_cls.weight *= 4
        detector.rpn_head.rpn_reg.weight *= 0.3
        detector.roi_head.bbox_head.fc_cls.weight *= 6
        if detector.roi_head.with_mask:
            detector.roi_head.mask_head.conv_logits.weight *= 10
    return detector


def images(batch, height, width):
    generator = torch.Generator().manual_seed(height + width)
    return torch.randn(batch, 3, height, width, generator=generator)


def sizes_of(batch, height, width):
    """Images of a batch are padded by different amounts."""
    return torch.tensor([[height - 7 * i, width - 11 * i] for i in range(batch)])


def expected(detector, image, size, paste=False):
    """Detect as mmdet does, with masks before they are pasted, or after."""

    def keep(mask_preds, results_list, **kwargs):
        for logits, found in zip(mask_preds, results_list, strict=True):
            channel = 0 if head.class_agnostic else found.labels
            found.masks = logits.sigmoid()[torch.arange(len(found)), channel]
        return results_list

    size = tuple(size.tolist())
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    head = getattr(detector.roi_head, 'mask_head', None)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        if head is not None and not paste:  # mmdet pastes float32 alone
            patch.setattr(head, 'predict_by_feat', keep)
        return detector.predict(image[None], [sample], rescale=False)[0].pred_instances


def found_in(outputs, row):
    """Return the detections of one image; check the unused rows."""
    boxes, scores, labels, *masks = (torch.as_tensor(x[row]) for x in outputs)
    assert (scores.diff() <= 0).all()
    there = scores > 0
    assert (labels[~there] == -1).all() and not boxes[~there].any()
    for mask in masks:
        assert not mask[~there].any()
    found = InstanceData(bboxes=boxes[there], scores=scores[there], labels=labels[there])
    if masks:
        found.masks = masks[0][there]
    return found


def in_order(found):
    """Sort detections whose scores are equal, which have no order of their own."""
    scores = found.scores.numpy().round(9)
    return found[torch.from_numpy(np.lexsort((found.bboxes[:, 0].numpy(), -scores)))]


def assert_same(first, second, tolerance=1e-9):
    """Compare two sets of detections in float64; boxes are in pixels."""
    first, second = in_order(first), in_order(second)
    assert first.labels.tolist() == second.labels.tolist()
    for key, factor in (('bboxes', 100), ('scores', 1), ('masks', 1))[: 2 + ('masks' in first)]:
        error = dict(rtol=0, atol=tolerance * factor)
        torch.testing.assert_close(second[key], first[key], **error)


@pytest.fixture(scope='module')
def detector():
    return build(config())


VARIANTS = {
    'mask': {},
    'softmax': {'rpn_head.loss_cls.use_sigmoid': False},
    'seesaw': {
        'roi_head.bbox_head.loss_cls': dict(_delete_=True, type='SeesawLoss', num_classes=CLASSES),
    },
    'large': {'test_cfg.rpn.min_bbox_size': 9},
    'few': {
        'test_cfg.rpn.max_per_img': 40,
        'test_cfg.rpn.nms_pre': 30,
        'test_cfg.rcnn.max_per_img': 7,
    },
    'agnostic': {
        'roi_head.bbox_head.reg_class_agnostic': True,
        'roi_head.mask_head.class_agnostic': True,
    },
    'unaligned': {
        'roi_head.bbox_roi_extractor.roi_layer.aligned': False,
        'roi_head.mask_roi_extractor.roi_layer.sampling_ratio': 2,
    },
    'one level': {'roi_head.mask_roi_extractor.featmap_strides': [4]},
    'no clip': {
        'rpn_head.bbox_coder.clip_border': False,
        'roi_head.bbox_head.bbox_coder.clip_border': False,
    },
}


@pytest.mark.parametrize('size', [(32, 32), (96, 160), (224, 64)])
@pytest.mark.parametrize('variant', ['faster', *VARIANTS])
def test_same_as_mmdet_in_float64(variant, size):
    model = config(masks=variant != 'faster')
    detector = build(changed(model, VARIANTS.get(variant, {}))).double()
    image, sizes = images(2, *size).double(), sizes_of(2, *size)
    with torch.inference_mode():
        outputs = TwoStageGraph(detector, torch.float64)(image, sizes.double())
    most = 7 if variant == 'few' else 100
    shapes = [(2, most, 4), (2, most), (2, most), (2, most, 28, 28)][: len(outputs)]
    assert [x.shape for x in outputs] == shapes and len(outputs) == 3 + (variant != 'faster')
    for row in range(2):
        found = found_in(outputs, row)
        assert len(found) > 4
        assert_same(expected(detector, image[row], sizes[row]), found)


def test_batch_without_a_detection():
    model = changed(config(), {'test_cfg.rcnn.score_thr': 0.9999})
    boxes, scores, labels, masks = TwoStageGraph(build(model))(
        images(2, 64, 64), sizes_of(2, 64, 64).float()
    )
    assert not boxes.any() and not scores.any() and (labels == -1).all() and not masks.any()


@pytest.mark.parametrize('count', [0, 3, 100])
def test_masks_are_pasted_as_in_mmdet(detector, count):
    image, size = images(1, 96, 160), torch.tensor([[90, 150]])
    with torch.inference_mode():
        outputs = TwoStageGraph(detector)(image, size.float())
    found = found_in(outputs, 0)[:count]
    first = expected(detector, image[0], size[0], paste=True)
    second = paste_masks(found.masks.numpy(), found.bboxes, (90, 150))
    assert len(first) == 100 and second.dtype == torch.bool
    assert 0.01 < first.masks.float().mean() < 0.9
    # a pixel where the probability is nearly the threshold can differ
    assert second.shape == (count, 90, 150)
    assert (second != first.masks[:count]).float().sum() <= 1e-4 * second.numel()
    if count:
        everything = paste_masks(found.masks.numpy(), found.bboxes, (90, 150), 0.0)
        assert everything.sum() > 1.5 * second.sum()


def test_half_is_nearly_the_same(detector):
    image, size = images(1, 96, 160), torch.tensor([[96, 160]])
    with torch.inference_mode():
        outputs = TwoStageGraph(detector, dtype=torch.float16)(image, size.float())
    assert all(x.dtype in (torch.float32, torch.int64) for x in outputs)
    assert next(detector.parameters()).dtype == torch.float32
    pair = expected(detector, image[0], size[0]), found_in(outputs, 0)
    agreement = compare_detections([pair], 0.05, 100, 0.02)
    assert agreement.detections == 100 and agreement.within(0.02, 1 / 20), str(agreement)


REFUSED = {
    'test_cfg.rcnn.nms=.* cannot be exported': {
        'test_cfg.rcnn.nms': dict(type='soft_nms', iou_threshold=0.5)
    },
    'test_cfg.rpn.nms=.*class_agnostic': {'test_cfg.rpn.nms.class_agnostic': True},
    'test_cfg.rpn.nms_pre=-1': {'test_cfg.rpn.nms_pre': -1},
    'test_cfg.rpn.max_per_img=0': {'test_cfg.rpn.max_per_img': 0},
    'test_cfg.rcnn.max_per_img=-1': {'test_cfg.rcnn.max_per_img': -1},
    'roi_head=PointRendRoIHead .*use StandardRoIHead': {
        'roi_head.type': 'PointRendRoIHead',
        'roi_head.point_head': dict(type='MaskPointHead', num_classes=CLASSES),
    },
    'roi_head.mask_roi_extractor=GenericRoIExtractor': {
        'roi_head.mask_roi_extractor.type': 'GenericRoIExtractor'
    },
    'roi_layers.0=RoIPool .*use RoIAlign': {
        'roi_head.bbox_roi_extractor.roi_layer': dict(_delete_=True, type='RoIPool', output_size=7)
    },
    'roi_layers.0.pool_mode=max .*use avg': {
        'roi_head.bbox_roi_extractor.roi_layer.pool_mode': 'max'
    },
    'roi_head.bbox_head=DoubleConvFCBBoxHead': {
        'roi_head.bbox_head': dict(
            _delete_=True,
            type='DoubleConvFCBBoxHead',
            num_convs=1,
            num_fcs=1,
            num_classes=CLASSES,
            in_channels=16,
            conv_out_channels=16,
        )
    },
    'roi_head.mask_head=CoarseMaskHead .*use FCNMaskHead': {
        'roi_head.mask_head': dict(
            _delete_=True,
            type='CoarseMaskHead',
            num_classes=CLASSES,
            in_channels=16,
            conv_out_channels=16,
        )
    },
    'roi_head.shared_head=ResLayer .*use None': {
        'roi_head.shared_head': dict(type='ResLayer', depth=18)
    },
    'rpn_head.bbox_coder=TBLRBBoxCoder': {
        'rpn_head.bbox_coder': dict(_delete_=True, type='TBLRBBoxCoder')
    },
    'rpn_head.bbox_coder.use_box_type=True': {'rpn_head.bbox_coder.use_box_type': True},
}


@pytest.mark.parametrize('message', REFUSED)
def test_what_the_graph_does_not_support(message):
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    detector = MODELS.build(changed(config(), REFUSED[message]))
    with pytest.raises(ConfigError, match=message) as error:
        TwoStageGraph(detector)
    assert str(error.value).count('cannot be exported') == 1


def test_cascade_is_refused():
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    model = Config.fromfile(MMDET / 'cascade_rcnn' / 'cascade-rcnn_r50_fpn_1x_coco.py').model
    model.backbone.init_cfg = None
    with pytest.raises(ConfigError, match='roi_head=CascadeRoIHead cannot'):
        TwoStageGraph(MODELS.build(model))


def write(module, file, inputs, outputs, dimensions):
    """Write a module as an ONNX file."""
    onnxscript = pytest.importorskip('onnxscript')
    from evit_mm.deploy.export import onnx_format

    table = two_stage_translations(onnxscript)
    table[torch.ops.evit_mm.nms_mask.default] = onnx_format._nms_mask(onnxscript)
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        dynamo=True,
        verbose=False,
        opset_version=onnx_format.OPSET,
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=dimensions,
        custom_translation_table=table,
    ).save(str(file))
    return file


def runs(file):
    """The file in ONNX Runtime and in OpenVINO."""
    onnxruntime, openvino = map(pytest.importorskip, ('onnxruntime', 'openvino'))
    from evit_mm.deploy.export.openvino_format import openvino_core

    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    options = {'INFERENCE_PRECISION_HINT': 'f32'}
    request = (
        openvino_core()
        .compile_model(openvino.convert_model(str(file)), 'CPU', options)
        .create_infer_request()
    )
    return (
        lambda **feed: session.run(None, feed),
        lambda **feed: [x.copy() for x in request.infer(feed).values()],
    )


class Extractor(torch.nn.Module):
    def __init__(self, extractor):
        super().__init__()
        self.extractor = extractor

    def forward(self, first, second, rois):
        return _extract(self.extractor, (first, second), rois)


@pytest.mark.parametrize(('aligned', 'sampling_ratio'), [(True, 0), (False, 2)])
def test_rois_of_a_file_are_those_of_mmdet(tmp_path, aligned, sampling_ratio):
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    layer = dict(type='RoIAlign', output_size=3, sampling_ratio=sampling_ratio, aligned=aligned)
    extractor = SingleRoIExtractor(layer, out_channels=4, featmap_strides=[4, 8])
    maps = {'first': torch.randn(2, 4, 64, 48), 'second': torch.randn(2, 4, 32, 24)}
    corner = torch.rand(40, 2) * 150
    rois = torch.cat((torch.arange(40)[:, None] % 2, corner, corner + torch.rand(40, 2) * 220), 1)
    few = {n: {0: torch.export.Dim.DYNAMIC} if n == 'rois' else {} for n in (*maps, 'rois')}
    file = write(
        Extractor(extractor).eval(), tmp_path / 'a.onnx', maps | {'rois': rois}, ['out'], few
    )
    small = (rois[:, 3:] - rois[:, 1:3]).prod(1) < 112**2
    assert 5 < small.sum() < 35
    for run in runs(file):
        for some in (rois, rois[small], rois[~small]):  # levels without a RoI
            (out,) = run(**{n: x.numpy() for n, x in maps.items()}, rois=some.numpy())
            expected = extractor(tuple(maps.values()), some)
            torch.testing.assert_close(torch.from_numpy(out), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope='module')
def written(detector, tmp_path_factory):
    """The graph as an ONNX file for any batch and image size."""
    from evit_mm.deploy.export.graph import EXAMPLE_SIZE

    inputs = images(2, *EXAMPLE_SIZE), sizes_of(2, *EXAMPLE_SIZE).float()
    any_batch = torch.export.Dim.DYNAMIC
    rows, columns = (32 * torch.export.Dim(name, min=1, max=256) for name in 'hw')
    return write(
        TwoStageGraph(detector).eval(),
        tmp_path_factory.mktemp('files') / 'any.onnx',
        dict(zip(('image', 'size'), inputs, strict=True)),
        ['boxes', 'scores', 'labels', 'masks'],
        ({0: any_batch, 2: rows, 3: columns}, {0: any_batch}),
    )


@pytest.mark.slow  # a minute for the graph
def test_runtimes_find_what_mmdet_finds(detector, written, real_data):
    photos = sorted(x for x in real_data('photos').iterdir() if x.suffix in ('.png', '.jpg'))
    assert len(photos) == 4
    pictures = [cv2.imread(str(x)).astype(np.float32) / 60 - 2 for x in photos]
    for run in runs(written):
        for batch, height, width in ((1, 32, 32), (4, 224, 320), (3, 192, 96), (1, 512, 512)):
            resized = [cv2.resize(x, (width, height)) for x in pictures[:batch]]
            image = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
            sizes = sizes_of(batch, height, width)
            outputs = run(image=image.numpy(), size=sizes.float().numpy())
            assert outputs[3].shape == (batch, 100, 28, 28)
            pairs = [
                (expected(detector, image[row], sizes[row]), found_in(outputs, row))
                for row in range(batch)
            ]
            agreement = compare_detections(pairs, 0.05, 100, 1e-4)
            assert agreement.detections > 10 * batch
            assert agreement.within(1e-4, 0) and agreement.iou > 0.999, str(agreement)
            for first, second in pairs:
                if first.labels.tolist() == second.labels.tolist():
                    torch.testing.assert_close(second.masks, first.masks, rtol=0, atol=1e-3)
        # no proposal is left
        boxes, scores, labels, masks = run(image=image.numpy(), size=np.zeros((1, 2), np.float32))
        assert not boxes.any() and not scores.any() and (labels == -1).all() and not masks.any()


@pytest.mark.slow
def test_proposals_with_tiny_scores_keep_their_order(detector, tmp_path):
    other = copy.deepcopy(detector)
    with torch.no_grad():
        other.rpn_head.rpn_cls.bias -= 40
    other.test_cfg.rpn.max_per_img = other.rpn_head.test_cfg.max_per_img = 20
    image, size = images(1, 96, 160), sizes_of(1, 96, 160)
    inputs = {'image': image, 'size': size.float()}
    names = ['boxes', 'scores', 'labels', 'masks']
    file = write(TwoStageGraph(other).eval(), tmp_path / 'a.onnx', inputs, names, None)
    for run in runs(file):
        outputs = run(**{name: x.numpy() for name, x in inputs.items()})
        pair = expected(other, image[0], size[0]), found_in(outputs, 0)
        agreement = compare_detections([pair], 0.05, 100, 1e-4)
        assert agreement.detections > 10 and agreement.unmatched == 0, str(agreement)


@pytest.mark.slow
def test_half_in_a_file_for_one_size(detector, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    image, size = images(1, 96, 160), sizes_of(1, 96, 160)
    inputs = {'image': image, 'size': size.float()}
    names = ['boxes', 'scores', 'labels', 'masks']
    graph = TwoStageGraph(detector, dtype=torch.float16).eval()
    file = write(graph, tmp_path / 'half.onnx', inputs, names, None)
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    outputs = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    assert [x.dtype for x in outputs] == [np.float32, np.float32, np.int64, np.float32]
    pair = expected(detector, image[0], size[0]), found_in(outputs, 0)
    agreement = compare_detections([pair], 0.05, 100, 0.02)
    assert agreement.detections == 100 and agreement.within(0.02, 1 / 20), str(agreement)


CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['evit_mm', 'evit_mm.evaluation.coco_metric'])
model = dict(_delete_=True, **{model!r})
data = dict(data_root={data!r})
loader = dict(num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = loader
test_dataloader = loader
val_evaluator = dict(ann_file={data!r} + '/annotations/instances_val.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
"""


@pytest.mark.slow
def test_a_file_has_the_ap_and_the_masks_of_the_checkpoint(detector, tmp_path):
    """The annotations are the detections of PyTorch, so that its AP is 1."""
    mask = pytest.importorskip('pycocotools.mask')
    pytest.importorskip('onnxruntime')
    from evit_mm.deploy.export import export
    from evit_mm.deploy.export.evaluation import evaluate
    from evit_mm.inference import Detector

    data = make_shapes(tmp_path / 'set', 1, 4, size=(96, 96), quiet=True)
    base = str(ROOT / 'configs' / 'retinanet_evit_m4_shapes.py')
    file, weights = tmp_path / 'mask.py', tmp_path / 'weights.pth'
    file.write_text(CONFIG.format(base=base, model=config().to_dict(), data=str(data)))
    torch.save({'state_dict': detector.state_dict()}, weights)
    images = sorted((data / 'val').glob('*.jpg'))
    expected = Detector(weights, file, 'cpu')(images)
    annotations = data / 'annotations' / 'instances_val.json'
    content = json.loads(annotations.read_text())
    names = {x['file_name']: x['id'] for x in content['images']}
    content['annotations'] = []
    for found in expected:
        assert len(found) > 10 and found.masks.any((1, 2)).sum() > 10
        for box, label, pixels in zip(found.boxes, found.labels, found.masks, strict=True):
            code = mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
            x1, y1, x2, y2 = map(float, box)
            content['annotations'].append(
                {
                    'id': len(content['annotations']) + 1,
                    'image_id': names[found.path.name],
                    'category_id': content['categories'][label]['id'],
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'segmentation': {**code, 'counts': code['counts'].decode()},
                    'area': int(mask.area(code)),
                    'iscrowd': 0,
                }
            )
    annotations.write_text(json.dumps(content))
    if importlib.util.find_spec('nncf'):
        with pytest.raises(ConfigError, match='int8 of the format openvino spoils masks'):
            export(file, weights, tmp_path / 'mask.xml', 'openvino', precision='int8')
    exported = export(file, weights, tmp_path / 'mask.onnx', dynamic=False)
    assert exported.agreement.mask_iou > 0.9
    plain, other = (
        evaluate(file, model, work_dir=str(tmp_path / 'work')) for model in (weights, exported.file)
    )
    for key in ('coco/bbox_mAP', 'coco/segm_mAP'):
        assert plain[key] > 0.9 and other[key] == pytest.approx(plain[key], abs=1e-3)
    for found, truth in zip(Detector(exported.file)(images), expected, strict=True):
        assert found.names == truth.names
        assert found.scores == pytest.approx(truth.scores, abs=1e-3)
        assert found.boxes == pytest.approx(truth.boxes, abs=0.05)
        assert (found.masks != truth.masks).mean() < 1e-3
