"""Export of a checkpoint, with a check of the file against PyTorch."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from rich.progress import track
from torch import nn

from ...data.check_images import image_folder
from ...data.dataset_configs import dataset_paths, image_suffixes
from ...data.images import list_images, spread
from ...errors import ConfigError, DataError, EvitError
from ...models import EfficientViT
from ...runner.build import load_detector
from ...runner.config import config_name, is_classifier, load_config
from ...utils.provenance import need_torch
from ...utils.text import counted
from ..fusion import fold_conv_bn, fuse
from .check import (
    SAME_BOX,
    SCORE_TOLERANCE,
    Agreement,
    ScoreAgreement,
    compare_detections,
    compare_scores,
    network_inputs,
)
from .classification import ClassifierGraph, describe_classifier
from .evaluation import evaluate
from .files import (
    BFLOAT16,
    CLASSIFICATION,
    DETECTION,
    FLOAT16,
    FLOAT32,
    INT8,
    TORCH,
    Format,
    describe,
    need,
)
from .formats import FORMATS
from .graph import ALL, CANDIDATES, NMS, DetectorGraph, input_names, nms_options
from .onnx_format import add_tensorrt_nms
from .runtime import ExportedModel, to_instances
from .two_stage import TwoStageGraph

CHECKED_IMAGES = 20
CALIBRATION_IMAGES = 100
STANDARD, NONE, TENSORRT = 'standard', 'none', 'tensorrt'  # kinds of NMS
# largest difference of scores, share of detections at the NMS threshold that one side may miss, and
# smallest IoU of the same box
LIMITS = {
    FLOAT32: (SCORE_TOLERANCE, 1 / 200, SAME_BOX),
    FLOAT16: (0.02, 1 / 50, 0.95),
    BFLOAT16: (0.05, 1 / 20, 0.9),
}
Samples = list[tuple[torch.Tensor, Any]]  # preprocessed images and their data samples


@dataclass(frozen=True)
class Exported:
    """The result of :func:`export`.

    Attributes:
        file: The exported file.
        agreement: Agreement of its detections or scores with PyTorch, or None without NMS.
        ap: AP of PyTorch and of the file, with ``int8`` and if annotations are available. For a
            classifier, the top-1 accuracy in percent.
        metric: Name of the metric in ``ap``.
    """

    file: Path
    agreement: Agreement | ScoreAgreement | None
    ap: dict[str, float] = field(default_factory=dict)
    metric: str = 'AP'


def export(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    file_format: str = 'onnx',
    nms: str = STANDARD,
    dynamic: bool = True,
    precision: str = FLOAT32,
    calibration: str | Path | None = None,
    check: str | Path | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Exported:
    """Export a trained detector or classifier and compare the file with PyTorch.

    The file is written only if its detections on the check images agree with PyTorch. Scores may
    differ by 1e-3 (float16: 0.02, bfloat16: 0.05). Boxes with an IoU of 0.99 (0.95, 0.9) are the
    same. One detection in 200 (50, 20) may be missing on one side, because NMS can decide
    differently for boxes at its threshold. An int8 file is not held to these limits. Its agreement
    is reported, and its AP if annotations are available.

    The file of a classifier returns scores. They must agree to the same limits, and one image in
    200 (50, 20) may have another class. With ``int8``, the accuracy is reported.

    Args:
        config: Config file.
        checkpoint: Checkpoint written by :func:`evit_mm.runner.train.train`.
        out: File whose suffix is that of the format: ``.onnx``, ``.xml``, ``.pt2`` or ``.pte``.
        file_format: Key of :data:`~evit_mm.deploy.export.formats.FORMATS`.
        nms: ``'standard'``: the file detects objects; ``'none'``: it returns all boxes and class
            scores; ``'tensorrt'``: it ends with ``EfficientNMS_TRT``, which only TensorRT has.
        dynamic: Accept any batch size and, for a detector, any image size. Otherwise, the file
            accepts one image of the size of the first check image.
        precision: ``'float32'``, ``'float16'``, ``'bfloat16'`` or ``'int8'``, see the format. int8
            is calibrated with the images in ``calibration``.
        calibration: Folder of images. Default: the training images of the config.
        check: Folder of images, of which 20 are used. Default: the test images of the config.
        cfg_options: See :func:`evit_mm.runner.train.train`.

    Returns:
        The file and its agreement with PyTorch.

    Raises:
        EvitError: An input cannot be read, the model cannot be exported, the file cannot be
            written, or the file disagrees with PyTorch.
    """
    out, form = Path(out), FORMATS.get(file_format)
    if form is None:
        raise ConfigError(f'--format must be one of {", ".join(FORMATS)}, got {file_format!r}')
    int8 = precision == INT8
    _refuse(form, file_format, out, checkpoint, nms, dynamic, precision)
    if calibration is not None and not int8:
        raise ConfigError('--calibration is for --int8; add --int8, or remove --calibration')
    need_torch(TORCH, 'An export')
    for package in (*form.packages, *((form.int8_packages or ()) if int8 else ())):
        need(package, form.extra)
    cfg = load_config(config, cfg_options)
    if is_classifier(cfg) and nms != STANDARD:
        flag = '--no-nms' if nms == NONE else '--tensorrt-nms'
        raise ConfigError(f"{flag} is for detectors, and '{config}' is a classifier; remove it")
    detector = load_detector(cfg, checkpoint).cpu()
    dtype = form.dtypes[FLOAT32 if int8 else precision]
    graph: nn.Module
    if is_classifier(cfg):
        graph, metadata = build_classifier_graph(cfg, detector, dtype)
    else:
        ending = ALL if nms != STANDARD else NMS if form.has_nms else CANDIDATES
        graph = build_graph(detector, ending, dtype)
        options = None  # of NMS outside
        with suppress(ConfigError) if nms == NONE else nullcontext():
            options = nms_options(detector.test_cfg)
        metadata = {
            'task': DETECTION,
            **describe(cfg, detector.dataset_meta['classes']),
            'outputs': graph.outputs,
            'nms': None if ending == NMS else options,
        }
        # the file needs sizes that are multiples of this divisor
        detector.data_preprocessor.pad_size_divisor = metadata['pad_size_divisor']
    if int8 and 'masks' in metadata['outputs'] and not form.int8_masks:
        raise ConfigError(
            f'int8 of the format {file_format} spoils masks; use --format onnx, or another '
            'precision'
        )
    metadata['precision'] = precision
    inputs = _read(cfg, detector, 'test', check, '--check', CHECKED_IMAGES)
    metadata['in_channels'] = inputs[0][0].shape[1]
    size = None if dynamic else tuple(inputs[0][0].shape[2:])
    metadata['static_size'] = None if size is None else [*size[::-1]]
    inputs = _of_size(inputs, size)
    calibrated_on, ap = [], {}
    metric = 'top-1 accuracy' if is_classifier(cfg) else 'AP'
    if int8:
        images = _read(cfg, detector, 'train', calibration, '--calibration', CALIBRATION_IMAGES)
        calibrated_on = _of_size(images, size)
        if not calibrated_on:
            raise ConfigError(
                f'no calibration image has the size of the --static file ({size[0]} pixels high, '
                f'{size[1]} pixels wide); choose other images with --calibration DIR'
            )

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # on the same file system as the target, so that the move is atomic
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            file = Path(folder, 'float').with_suffix(out.suffix)
            print_log('exporting the model', logger='current')
            form.write(graph, file, metadata, size)
            agreement = _check(detector, file, inputs, metadata)
            if int8:
                source, file = file, file.with_stem('int8')
                names = input_names(graph)
                named = [_named(*row) for row in calibrated_on]
                chosen = [{name: values[name] for name in names} for values in named]
                form.quantize(source, file, metadata, chosen)
                agreement = _agreement(detector, file, inputs, metadata, BFLOAT16)
                ap = _average_precisions(config, checkpoint, file, cfg_options, metric)
            if nms == TENSORRT:
                add_tensorrt_nms(file, metadata)
            for suffix in form.suffixes:
                file.with_suffix(suffix).replace(out.with_suffix(suffix))
    except OSError as error:
        raise EvitError(f"'{out}' cannot be written: {error}") from None
    return Exported(out, agreement, ap, metric)


def build_graph(detector: nn.Module, ending: str, dtype: torch.dtype) -> nn.Module:
    """Return the graph of a detector in eval mode, with its EfficientViT fused.

    Raises:
        ConfigError: The detector cannot be exported.
    """
    _plain_graph(detector, ending)  # raises before the fusion takes time
    return _plain_graph(_fused(detector), ending, dtype).eval()


def _plain_graph(
    detector: nn.Module, ending: str, dtype: torch.dtype = torch.float32
) -> DetectorGraph | TwoStageGraph:
    if not hasattr(detector, 'roi_head'):
        return DetectorGraph(detector, ending, dtype)
    if ending != NMS:
        raise ConfigError(
            f'{type(detector).__name__} has two stages, with NMS between them; export it to ONNX '
            'or OpenVINO, without --no-nms or --tensorrt-nms'
        )
    return TwoStageGraph(detector, dtype)


def build_classifier_graph(
    cfg: Any, classifier: nn.Module, dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the graph of a classifier in eval mode, with its EfficientViT fused, and the metadata.

    Raises:
        ConfigError: The classifier cannot be exported.
    """
    classes = classifier.dataset_meta.get('classes')
    if classes is None:
        raise ConfigError(
            f"config '{cfg.filename}': neither the config nor the checkpoint has the class names; "
            'set test_dataloader.dataset.metainfo.classes'
        )
    described = describe_classifier(cfg, classes)
    ClassifierGraph(classifier)  # raises before the fusion takes time
    width, height = described['crop_size']
    graph = ClassifierGraph(_fused(classifier), (height, width), dtype).eval()
    return graph, {'task': CLASSIFICATION, **described, 'outputs': ['scores']}


def _fused(model: nn.Module) -> nn.Module:
    """Return a copy with a fused EfficientViT, and with BatchNorm folded into mmcv's ConvModules.

    RTMDet's levels share convolutions but not BatchNorm. ExecuTorch 1.5 would fold each BatchNorm
    into the shared convolution.
    """
    from mmcv.cnn import ConvModule

    fast = any(isinstance(m, EfficientViT) for m in model.modules())
    fused = fuse(model) if fast else copy.deepcopy(model)
    for module in list(fused.modules()):
        if isinstance(module, ConvModule) and module.order[:2] == ('conv', 'norm'):
            norm = module.norm
            norms = (nn.BatchNorm2d, nn.SyncBatchNorm)
            if isinstance(module.conv, nn.Conv2d) and isinstance(norm, norms):
                module.conv = fold_conv_bn(module.conv, norm)
                setattr(module, module.norm_name, nn.Identity())
    return fused.float().requires_grad_(False)


def _refuse(
    form: Format,
    name: str,
    out: Path,
    checkpoint: str | Path,
    nms: str,
    dynamic: bool,
    precision: str,
) -> None:
    """Check the combination of options and the output path."""
    if out.suffix != form.suffixes[-1]:
        raise ConfigError(
            f"-o '{out}': the file name of --format {name} must end in {form.suffixes[-1]}"
        )
    known = [*form.dtypes, *([INT8] if form.int8_packages is not None else [])]
    if precision not in known:
        raise ConfigError(
            f'the format {name} has no {precision} here; choose from {", ".join(known)}'
        )
    if dynamic and not form.dynamic:
        raise ConfigError(f'the format {name} accepts one image size; add --static')
    if nms == TENSORRT and name != 'onnx':
        raise ConfigError(f'--tensorrt-nms needs --format onnx, got {name}')
    for target in map(out.with_suffix, form.suffixes):
        if target.is_dir():
            raise ConfigError(f"-o '{target}' is a folder; choose another name")
        if target.exists() and Path(checkpoint).exists() and target.samefile(checkpoint):
            raise ConfigError(
                f"-o '{out}' would overwrite the checkpoint '{checkpoint}'; choose another name"
            )


def _read(
    cfg: Any, detector: nn.Module, split: str, folder: str | Path | None, flag: str, most: int
) -> Samples:
    """Return at most ``most`` images, evenly spread over a folder or a split."""
    try:
        if folder is None:
            dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
            if not dataset:
                raise DataError(f"config '{config_name(cfg)}' has no {split}_dataloader.dataset")
            while inner := dataset.get('dataset') or dataset.get('datasets', [None])[0]:
                dataset = inner
            classifies = is_classifier(cfg)
            folder = image_folder(dataset) if classifies else dataset_paths(dataset)['img_dir']
        files = spread(list_images(folder, image_suffixes(cfg)), most)
    except DataError as error:
        raise ConfigError(f'{error}; give a folder of real images with {flag} DIR') from None
    return list(network_inputs(cfg, detector, track(files, f'reading images ({split})')))


def _of_size(inputs: Samples, size: tuple | None) -> Samples:
    """Return the images of one size ``(H, W)``, or all images if it is None."""
    return [row for row in inputs if size is None or tuple(row[0].shape[2:]) == size]


def _named(image: torch.Tensor, sample: Any) -> dict[str, np.ndarray]:
    """Return the inputs of the exported file for one image."""
    return {
        'image': image.numpy(),
        'size': np.array([sample.img_shape[:2]], dtype=np.float32),
    }


def _agreement(
    detector: nn.Module, file: Path, inputs: Samples, metadata: dict, precision: str
) -> Agreement | ScoreAgreement:
    opened = ExportedModel(file)
    if metadata['task'] == CLASSIFICATION:
        return compare_scores(_score_pairs(detector, opened, inputs))
    most = nms_options(detector.test_cfg)['max_per_img']

    def pairs() -> Iterator[tuple[InstanceData, InstanceData]]:
        for image, sample in track(inputs, description='comparing with PyTorch'):
            with torch.inference_mode():
                (expected,) = detector.predict(image, [copy.deepcopy(sample)], rescale=False)
            outputs = opened.detect(**_named(image, sample))
            shape, threshold = sample.img_shape, metadata.get('mask_thr', 0.5)
            found = to_instances(outputs, shape=shape, mask_thr=threshold)
            # YOLOX does not limit the number of detections
            yield expected.pred_instances[:most], found

    tolerance, _, same_box = LIMITS[precision]
    return compare_detections(pairs(), metadata['score_thr'], most, tolerance, same_box)


def _score_pairs(
    classifier: nn.Module, opened: ExportedModel, inputs: Samples
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the scores ``(K,)`` of PyTorch and of the file for each image."""
    for image, _ in track(inputs, description='comparing with PyTorch'):
        with torch.inference_mode():
            (expected,) = classifier.predict(image)
        (scores,) = opened(image.numpy())
        yield expected.pred_score.numpy(), scores[0]


def _check(
    detector: nn.Module, file: Path, inputs: Samples, metadata: dict
) -> Agreement | ScoreAgreement | None:
    """Compare a file with PyTorch, and raise an EvitError if they disagree."""
    precision = metadata['precision']
    precision = FLOAT32 if precision == INT8 else precision
    tolerance, share, _ = LIMITS[precision]
    fix = 'choose another --format' if precision == FLOAT32 else 'use float32'
    if metadata['outputs'] == ['boxes', 'scores']:
        _compare_all_boxes(detector, file, inputs, tolerance, fix)
        return None
    agreement = _agreement(detector, file, inputs, metadata, precision)
    if isinstance(agreement, Agreement) and not agreement.detections:
        raise EvitError(
            f'no file was written: PyTorch detected nothing on '
            f'{counted(agreement.images, "image")}, so there is nothing to compare. '
            'Lower model.test_cfg.score_thr with --cfg-options, or '
            'give other images with --check DIR'
        )
    if not agreement.within(tolerance, share):
        raise EvitError(
            f'no file was written: the exported model disagrees with PyTorch ({agreement}); {fix}'
        )
    return agreement


def _compare_all_boxes(
    detector: nn.Module, file: Path, inputs: Samples, tolerance: float, fix: str
) -> None:
    """Compare a file without NMS with PyTorch, box by box."""
    opened, plain = ExportedModel(file), DetectorGraph(detector, ALL)
    for image, sample in track(inputs, description='comparing with PyTorch'):
        named = _named(image, sample)
        with torch.inference_mode():
            expected = plain(image, torch.from_numpy(named['size']))
        boxes, scores = (
            float(np.abs(a - b.numpy()).max())
            for a, b in zip(opened(**named), expected, strict=True)
        )
        if not (scores <= tolerance and boxes <= tolerance * max(image.shape[2:])):
            raise EvitError(
                'no file was written: the exported model disagrees with PyTorch on '
                f"'{sample.img_path}' (scores differ by {scores:.1e}, boxes by {boxes:.1e} "
                f'pixels); {fix}'
            )


def _average_precisions(
    config: str | Path,
    checkpoint: str | Path,
    out: Path,
    cfg_options: Mapping[str, Any] | None,
    metric: str = 'AP',
) -> dict[str, float]:
    """Return the AP or accuracy of PyTorch and of the file on the test set, if it is available."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = {
                name: evaluate(config, weights, work_dir=folder, cfg_options=cfg_options)
                for name, weights in (('PyTorch', checkpoint), ('int8', out))
            }
        except (EvitError, OSError) as error:  # an export does not need annotations
            print_log(f'the {metric} of the int8 file was not measured: {error}', logger='current')
            return {}
    key = 'coco/bbox_mAP' if metric == 'AP' else 'accuracy/top1'
    return {name: metrics[key] for name, metrics in found.items() if key in metrics}
