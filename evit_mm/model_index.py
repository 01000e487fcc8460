"""``configs/metafile.yml``, which OpenMMLab's tools read, made from the configs themselves.

configs/ is one flat folder, so there is one file; ``model-index.yml`` at the root names it.
Figures are counted (parameters, multiply-adds), published (and labelled so), or measured here and
then read from the tables of README.md and docs/.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .compare.complexity import count_macs, count_parameters, measure
from .compare.published_results import IMAGENET, MASK_RCNN_EVIT_M4, PUBLISHED, RELEASE, WEIGHTS
from .errors import ConfigError
from .utils.package_files import project_path

FILE = 'configs/metafile.yml'
HEADER = '# written by: python tools/model_index.py\n'
NOT_RUN = 'not run'
PUBLISHED_LABEL = '{} (published, not measured here)'
PAPERS = {
    'EfficientViT': (
        '2305.07027',
        'EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention',
    ),
    'RetinaNet': ('1708.02002', 'Focal Loss for Dense Object Detection'),
    'Mask R-CNN': ('1703.06870', 'Mask R-CNN'),
    'RTMDet': ('2212.07784', 'RTMDet: An Empirical Study of Designing Real-Time Object Detectors'),
    'YOLOX': ('2107.08430', 'YOLOX: Exceeding YOLO Series in 2021'),
}
COLLECTIONS = {'EfficientViTClassifier': 'EfficientViT', 'MaskRCNN': 'Mask R-CNN'}
# their necks join maps of neighbouring strides, which fit only in an image that is padded
CONCATENATING = ('RTMDet', 'YOLOX')
DIVISOR = 32  # the configs' pad_size_divisor
DATASETS = {
    'coco': 'COCO',
    'shapes': 'built-in shapes',
    'bccd': 'BCCD (blood cells)',
    'imagenet': 'ImageNet-1k',
}


def metafile() -> str:
    """Return what ``configs/metafile.yml`` has to be.

    Raises:
        ConfigError: A config is of a kind that is not known here, or says that it was measured
            where no table has it.
    """
    models = [_model(config) for config in sorted(project_path('configs').glob('*.py'))]
    used = {model['In Collection'] for model in models}
    collections = [_collection(name) for name in PAPERS if name in used]
    content = {'Collections': collections, 'Models': models}
    return HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _collection(name: str) -> dict[str, Any]:
    number, title = PAPERS[name]
    return {
        'Name': name,
        'Paper': {'URL': f'https://arxiv.org/abs/{number}', 'Title': title},
        'README': '../README.md',  # from where the file lies
    }


def _model(config: Path) -> dict[str, Any]:
    from .runner.config import load_config

    cfg, stem = load_config(config), config.stem
    collection = COLLECTIONS.get(cfg.model.type, cfg.model.type)
    data = stem.rpartition('_')[2]
    if collection not in PAPERS or data not in DATASETS:
        raise ConfigError(
            f"{config}: '{cfg.model.type}' on '{data}' is not known in evit_mm/model_index.py; add "
            'it to PAPERS or DATASETS'
        )
    size, params, macs = _counted(config, cfg)
    model = {
        'Name': stem,
        'In Collection': collection,
        'Config': f'configs/{config.name}',
        'Metadata': {
            'Training Data': DATASETS[data],
            'Epochs': cfg.train_cfg.max_epochs,
            'Input Size': f'{size[0]}x{size[1]}',
            'Parameters': params,
            'FLOPs': macs,
        },
        'Results': _results(config, collection, DATASETS[data]),
    }
    if stem in WEIGHTS:
        model['Weights'] = RELEASE + WEIGHTS[stem]
    return model


def _counted(config: Path, cfg: Any) -> tuple[tuple[int, int], int, int]:
    """Return the size of an image as it is tested, and parameters and multiply-adds for it."""
    pipeline = cfg.test_dataloader.dataset.pipeline
    if cfg.model.type != 'EfficientViTClassifier':
        scale = next(step.scale for step in pipeline if step.type.rpartition('.')[2] == 'Resize')
        width, height = (scale, scale) if isinstance(scale, int) else scale
        if cfg.model.type in CONCATENATING:
            width, height = (-(-side // DIVISOR) * DIVISOR for side in (width, height))
        size = (width, height)
        parts = measure(config, size).parts.values()
        return size, sum(part[0] for part in parts), sum(part[1] for part in parts)
    from mmengine.registry import MODELS, init_default_scope
    from torch import empty

    init_default_scope('mmpretrain')
    side = next(step.crop_size for step in pipeline if step.type.rpartition('.')[2] == 'CenterCrop')
    model = MODELS.build({**cfg.model, 'init_cfg': None}).to('meta').eval()
    macs = count_macs(model, empty(1, 3, side, side, device='meta'))
    return (side, side), count_parameters(model), macs


def _results(config: Path, collection: str, dataset: str) -> list[dict[str, Any]]:
    """Return the tasks with their figures: measured here or not run, and published beside."""
    stem = config.stem
    name = stem.removeprefix('retinanet_').removesuffix('_coco').removesuffix('_imagenet')
    if dataset == DATASETS['imagenet']:
        figures = dict(
            zip(('Top 1 Accuracy', 'Top 5 Accuracy'), IMAGENET.get(name, ()), strict=False)
        )
        metrics = {'Top 1 Accuracy': NOT_RUN, **_labelled(figures)}
        return [{'Task': 'Image Classification', 'Dataset': dataset, 'Metrics': metrics}]
    tasks = {'Object Detection': 'box'}
    published: Mapping[str, tuple[float, ...]] = {}
    if collection == 'Mask R-CNN':
        tasks['Instance Segmentation'] = 'mask'
    if stem == 'mask_rcnn_evit_m4_coco':
        published = MASK_RCNN_EVIT_M4
    elif stem == f'retinanet_{name}_coco' and name in PUBLISHED:
        published = {'box': PUBLISHED[name].coco}
    results = []
    for task, kind in tasks.items():
        figures = {f'{kind} AP': ap for ap in published.get(kind, ())[:1]}
        own = measured_ap(config) if kind == 'box' else NOT_RUN
        metrics = {f'{kind} AP': own, **_labelled(figures)}
        results.append({'Task': task, 'Dataset': dataset, 'Metrics': metrics})
    return results


def _labelled(figures: dict[str, float]) -> dict[str, float]:
    return {PUBLISHED_LABEL.format(name): figure for name, figure in figures.items()}


def measured_ap(config: Path) -> float | str:
    """Return the box AP measured here, in percent, out of the tables of README.md and docs/.

    Where no table has it, the page that the config's docstring names.

    Raises:
        ConfigError: The docstring says "Measured", no table has its AP, and it names no page.
    """
    docstring = ast.get_docstring(ast.parse(config.read_text(encoding='utf-8'))) or ''
    if 'Measured' not in docstring:
        return NOT_RUN
    own = rf'\| `(?:configs/)?{config.stem}(?:\.py)?` \|'
    row = re.compile(own + r'(?:[^|\n]*\|)*? ?(0\.\d{3}) \|')  # the first figure of that form
    for page in (project_path('README.md'), *sorted(project_path('docs').glob('*.md'))):
        found = row.search(page.read_text(encoding='utf-8'))
        if found:
            return round(100 * float(found[1]), 2)
    named = re.search(r'see (docs/\w+\.md)', docstring)
    if named:  # a table that is still to be filled
        return f'see {named[1]}'
    raise ConfigError(
        f'{config} says that it was measured, but no table in README.md or docs/ has a row '
        f"'| `configs/{config.name}` | 0.AP |'"
    )
