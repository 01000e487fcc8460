"""Write the tables of results: python tools/dev/write_results.py [--check].

Published and measured figures come from ``evit_mm/compare/results.yml``. Parameters and
multiply-adds are counted from the configs. The program replaces the tables between
``<!-- begin NAME -->`` and ``<!-- end -->`` in the pages, and writes ``configs/metafile.yml``.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from mmengine.config import Config
from rich.progress import track

import evit_mm
from evit_mm.compare.budget import timm_backbone
from evit_mm.compare.complexity import (
    Complexity,
    as_markdown,
    count_macs,
    count_parameters,
    measure,
)
from evit_mm.compare.published_results import TIMM_NAMES, read_results
from evit_mm.errors import ConfigError, EvitError
from evit_mm.utils.package_files import project_path

ROOT = project_path('')
METAFILE = 'configs/metafile.yml'
METAFILE_HEADER = '# written by: python tools/dev/write_results.py\n'
PUBLISHED_LABEL = '{} (published, not measured here)'
OWN_CODE = '../evit_mm/models/efficientvit.py'  # relative to the metafile
DATASETS = {
    'coco': 'COCO',
    'shapes': 'built-in shapes',
    'bccd': 'BCCD (blood cells)',
    'imagenet': 'ImageNet-1k',
}
AP_COLUMNS = ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large')
NOT_RUN = 'not run'
# licences of weights, as timm writes them; all allow commercial use
LICENCES = {'apache-2.0': 'Apache-2.0', 'mit': 'MIT'}
RESULTS = read_results()
# URL of the files in `weights`, as in the configs
RELEASE = Config.fromfile(project_path('configs/_base_/models/efficientvit_release.py')).release

Lines = list[str]


# --- counting


@dataclass(frozen=True)
class Counted:
    """Figures that are counted from one config, for one test image.

    Attributes:
        size: ``(width, height)``, padded if the network needs it.
        params: Parameters of the whole model.
        macs: Multiply-adds for one image of ``size``.
        epochs: Length of the training.
        model_type: Class of the model.
    """

    size: tuple[int, int]
    params: int
    macs: int
    epochs: int
    model_type: str


@functools.cache
def complexity(config: Path, size: tuple[int, int] = (1333, 800)) -> Complexity:
    """Return the complexity of a detector for an image of ``(width, height)``."""
    return measure(config, size)


def config_path(stem: str) -> Path:
    """Return the path of a config."""
    return project_path(f'configs/{stem}.py')


@functools.cache
def count(config: Path) -> Counted:
    """Count the model of a config for one image of its test size.

    Raises:
        ConfigError: The config cannot be read or counted.
    """
    from mmengine.registry import MODELS, init_default_scope

    from evit_mm.runner.config import load_config

    cfg = load_config(config)
    steps = {step['type'].split('.')[-1]: step for step in cfg.test_dataloader.dataset.pipeline}
    epochs, model_type = cfg.train_cfg.max_epochs, cfg.model.type
    if 'Resize' in steps:
        size, parts = _count_detector(config, tuple(steps['Resize']['scale']))
        params, macs = (sum(figures) for figures in zip(*parts.values(), strict=True))
        return Counted(size, params, macs, epochs, model_type)
    side = steps['CenterCrop']['crop_size']
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):  # only shapes, no weights
        model = MODELS.build({**cfg.model, 'init_cfg': None}).eval()
        macs = count_macs(model, torch.empty(1, 3, side, side))
    return Counted((side, side), count_parameters(model), macs, epochs, model_type)


def _count_detector(
    config: Path, size: tuple[int, int]
) -> tuple[tuple[int, int], dict[str, tuple[int, int]]]:
    try:
        return size, complexity(config, size).parts
    except ConfigError:
        # a neck that adds maps of neighbouring strides needs padded images
        width, height = (-(-side // 32) * 32 for side in size)
        return (width, height), complexity(config, (width, height)).parts


# --- the tables; `folder` is the folder of the page


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """Return a table as Markdown."""
    lines = [columns, *rows]
    cells = [f'| {" | ".join(line)} |' for line in lines]
    return [cells[0], f'|{"---|" * len(columns)}', *cells[1:]]


def source_link(name: str) -> str:
    """Return a link to the source of a published figure."""
    source = RESULTS['sources'][name]
    return f'[{source["cite"]}]({source["url"]})'


def models_table(folder: Path, ending: str | tuple[str, ...]) -> Lines:
    """Return the configs whose names end so, with what each costs, is published and reached."""
    columns = ['config', 'model', 'image', 'params M', 'multiply-adds G', 'published', 'here']
    rows = []
    for stem, facts in RESULTS['configs'].items():
        if not stem.endswith(ending):
            continue
        counted = count(config_path(stem))
        rows.append(
            [
                f'[{stem}]({_path_from(folder, f"configs/{stem}.py")})',
                facts['title'],
                f'{counted.size[0]}x{counted.size[1]}',
                f'{counted.params / 1e6:.2f}',
                f'{counted.macs / 1e9:.2f}',
                _published_cell(facts.get('published')),
                _here_cell(facts, folder),
                _weights_cell(facts),
            ]
        )
    return table([*columns, 'weights'], rows)


def _path_from(folder: Path, target: str) -> str:
    return Path(os.path.relpath(ROOT / target, folder)).as_posix()


def _published_cell(published: dict[str, Any] | None) -> str:
    if published is None:
        return '-'
    if 'imagenet' in published:
        accuracies = zip(published['imagenet'], ('top-1', 'top-5'), strict=False)
        figures = ', '.join(f'{figure} {name}' for figure, name in accuracies)
    elif 'mask' in published:
        figures = f'{published["box"][0]} box AP, {published["mask"][0]} mask AP'
    else:
        figures = f'{published["box"][0]} AP'
    recipe = RESULTS['sources'][published['source']].get('recipe')
    with_recipe = f', with {recipe} recipe' if recipe else ''
    return f'{figures}{with_recipe} ({source_link(published["source"])})'


def _here_cell(facts: dict[str, Any], folder: Path) -> str:
    if 'measured' not in facts:
        return NOT_RUN
    run = facts['measured'][0]
    return f'AP {run["box"][0]:.3f} ({_log_cell(run, folder)})'


def _log_cell(run: dict[str, Any], folder: Path) -> str:
    return f'[log]({_path_from(folder, "docs/logs/" + run["log"])})' if 'log' in run else '-'


def _weights_cell(facts: dict[str, Any]) -> str:
    return f"[the authors']({RELEASE}{facts['weights']})" if 'weights' in facts else '-'


def comparison() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the config and the backbone of each row in the paper's comparison."""
    for name, backbone in RESULTS['backbones'].items():
        stem = f'retinanet_{name}_coco'
        # no AP of M0 to M3 is published, so only the model table has them
        if 'published' in RESULTS['configs'][stem] or not name.startswith('evit'):
            yield stem, backbone


def _label(row: dict[str, Any]) -> str:
    return f'{row["label"]} ({row["note"]})' if 'note' in row else row['label']


def published_table(folder: Path) -> Lines:  # noqa: ARG001
    """Return the published comparison with all COCO metrics and all rows."""
    columns = ['backbone', 'FLOPs M', 'params M', *AP_COLUMNS, 'source of the AP', 'here']
    found = [
        (backbone, RESULTS['configs'][stem].get('published', {}), NOT_RUN)
        for stem, backbone in comparison()
    ]
    found += [(row, row, 'no config') for row in RESULTS['without_config']]
    rows = []
    for backbone, published, here in found:
        box = [str(figure) for figure in published.get('box', ())]
        rows.append(
            [
                _label(backbone),
                f'{backbone["macs"] / 1e6:g}' if 'macs' in backbone else '-',
                f'{backbone["params"] / 1e6:.1f}' if 'params' in backbone else '-',
                *box,
                *['-'] * (len(AP_COLUMNS) - len(box)),
                source_link(published['source']) if published else '-',
                here,
            ]
        )
    return table(columns, rows)


def imagenet_table(folder: Path) -> Lines:  # noqa: ARG001
    """Return the published accuracies of the classifiers."""
    rows = []
    for stem, facts in RESULTS['configs'].items():
        if stem.endswith('_imagenet'):
            side = count(config_path(stem)).size[0]
            top1, top5 = [*map(str, facts['published']['imagenet']), ''][:2]
            source = source_link(facts['published']['source'])
            rows.append([f'`{stem}`', str(side), top1, top5, source, NOT_RUN])
    columns = ['config', 'resolution', 'top-1 published', 'top-5 published', 'source', 'here']
    return table(columns, rows)


@functools.cache
def timm_table(folder: Path) -> Lines:  # noqa: ARG001
    """Return timm's networks as ``tools/compare.py`` uses them, with the counted classifier."""
    rows = []
    for network, facts in RESULTS['timm'].items():
        backbone = timm_backbone(network)
        with torch.device('meta'):  # only shapes, no weights
            classifier = timm.create_model(network).eval()
            macs = count_macs(classifier, torch.empty(1, 3, 224, 224))
        stem = f'retinanet_{TIMM_NAMES.get(network)}_coco'
        published = RESULTS['configs'].get(stem, {}).get('published')
        rows.append(
            [
                f'`timm:{network}`',
                f'{count_parameters(classifier) / 1e6:.2f}',
                f'{macs / 1e6:.0f}',
                ', '.join(map(str, backbone.strides)),
                ', '.join(map(str, backbone.out_channels)),
                _published_cell(published or facts.get('published')),
                _licence(network),
            ]
        )
    columns = ['network', 'params M', 'multiply-adds M', 'strides', 'channels']
    return table([*columns, 'published on COCO', 'licence of the weights'], rows)


def licences_table(folder: Path) -> Lines:  # noqa: ARG001
    """Return the licences of code and weights of each network that has a config."""
    rows = []
    for name, facts in RESULTS['backbones'].items():
        backbone = Config.fromfile(config_path(f'retinanet_{name}_coco')).model.backbone
        weights, code = backbone.init_cfg.checkpoint.removeprefix('timm://'), 'timm'
        if backbone.type != 'TIMMNet':
            # timm has the weights of the authors' release, too
            weights, code = name.replace('evit_', 'efficientvit_'), 'this package'
        rows.append([facts['label'], f'Apache-2.0 ({code})', _licence(weights)])
    return table(['network', 'licence of the code', 'licence of the weights'], rows)


def _licence(network: str) -> str:
    """Return the licence of timm's default weights of a network."""
    weights = timm.get_pretrained_cfg(network) if timm.is_model(network) else None
    licence = weights.license if weights else None
    return LICENCES[licence] if licence else 'not stated'


def complexity_table(folder: Path) -> Lines:  # noqa: ARG001
    """Return the output of ``tools/complexity.py``."""
    stems = sorted(s for s in RESULTS['configs'] if s.startswith(('retinanet', 'mask')))
    rows = [complexity(config_path(stem)) for stem in stems if stem.endswith('_coco')]
    return as_markdown(rows).splitlines()


def results_table(folder: Path) -> Lines:
    """Return each published COCO AP and the first run of each config that was trained here."""
    rows = []
    for stem, facts in RESULTS['configs'].items():
        published, runs = facts.get('published', {}), facts.get('measured', [])
        if 'box' not in published and not runs:
            continue
        config = f'[{stem}]({_path_from(folder, f"configs/{stem}.py")})'
        if runs:
            measured = f'{100 * runs[0]["box"][0]:.1f}'
            rows.append([runs[0]['data'], config, '-', measured, _log_cell(runs[0], folder)])
        else:
            url = RESULTS['sources'][published['source']]['url']
            rows.append(['COCO', config, f'[{published["box"][0]}]({url})', '-', '-'])
    return table(['data', 'config', 'AP published, %', 'AP measured, %', 'log'], rows)


def runs_table(folder: Path, *stems: str) -> Lines:
    """Return all metrics of all runs of some configs."""
    rows = []
    for stem in stems:
        for run in RESULTS['configs'][stem]['measured']:
            box = [f'{figure:.3f}' for figure in run['box']]
            missing = ['-'] * (len(AP_COLUMNS) - len(box))
            about = [run['training'], str(run['date']), _log_cell(run, folder)]
            rows.append([f'`configs/{stem}.py`', *box, *missing, *about])
    return table(['config', *AP_COLUMNS, 'training', 'date', 'log'], rows)


# page -> name of the table -> function
PAGES: dict[str, dict[str, Callable[[Path], Lines]]] = {
    'README.md': {'results': results_table},
    'configs/README.md': {
        'coco': functools.partial(models_table, ending='_coco'),
        'imagenet': functools.partial(models_table, ending='_imagenet'),
        'small': functools.partial(models_table, ending=('_shapes', '_bccd')),
    },
    'docs/models.md': {
        'coco': functools.partial(models_table, ending='_coco'),
        'imagenet': functools.partial(models_table, ending='_imagenet'),
        'small': functools.partial(models_table, ending=('_shapes', '_bccd')),
        'timm': timm_table,
        'licences': licences_table,
    },
    'docs/reproduce.md': {'published': published_table},
    'docs/complexity.md': {'complexity': complexity_table},
    'docs/classification.md': {'imagenet': imagenet_table},
    'docs/results.md': {
        'shapes': lambda folder: runs_table(folder, 'retinanet_evit_m4_shapes'),
        'bccd': lambda folder: runs_table(folder, 'retinanet_evit_m4_bccd'),
    },
    'docs/recipes.md': {
        'detectors': lambda folder: runs_table(folder, 'rtmdet_evit_m0_bccd', 'yolox_evit_m0_bccd')
    },
}


def page(name: str) -> str:
    """Return a page with new tables.

    Raises:
        ConfigError: The page has no markers for a table.
    """
    path = ROOT / name
    text = path.read_text(encoding='utf-8')
    for title, make in PAGES[name].items():
        before, begin, rest = text.partition(f'<!-- begin {title} -->\n')
        _, end, after = rest.partition('<!-- end -->')
        if not end:
            raise ConfigError(f"{name} has no '<!-- begin {title} -->' followed by '<!-- end -->'")
        text = before + begin + '\n'.join(make(path.parent)) + '\n' + end + after
    return text


# --- the list of models for OpenMMLab's tools


def metafile() -> str:
    """Return the text of ``configs/metafile.yml``.

    Raises:
        ConfigError: A config is not in ``results.yml``, or its model type or data set is unknown.
    """
    models = [_model(config) for config in sorted(project_path('configs').glob('*.py'))]
    collections = [
        _collection(name, facts, [m for m in models if m['In Collection'] == name])
        for name, facts in RESULTS['collections'].items()
    ]
    content = {'Collections': collections, 'Models': models}
    return METAFILE_HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _collection(
    name: str, facts: dict[str, Any], models: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    url = facts.get('code', OWN_CODE)
    version = f'v{evit_mm.__version__}' if url == OWN_CODE else url.split('/blob/')[1].split('/')[0]
    return {
        'Name': name,
        'Metadata': {
            'Training Data': list(dict.fromkeys(m['Metadata']['Training Data'] for m in models)),
            'Architecture': facts['architecture'],
        },
        'Paper': {'URL': facts['paper'], 'Title': facts['title']},
        'README': 'README.md',  # relative to the metafile
        'Code': {'URL': url, 'Version': version},
    }


def _model(config: Path) -> dict[str, Any]:
    stem, data = config.stem, config.stem.rpartition('_')[2]
    facts = RESULTS['configs'].get(stem)
    counted = count(config)
    by_type = {row['type']: name for name, row in RESULTS['collections'].items()}
    if facts is None or counted.model_type not in by_type or data not in DATASETS:
        raise ConfigError(
            f"config '{config}' with model '{counted.model_type}' and data '{data}' is unknown; "
            'add the config and its model to evit_mm/compare/results.yml, and its data to DATASETS '
            'in tools/dev/write_results.py'
        )
    model = {
        'Name': stem,
        'In Collection': by_type[counted.model_type],
        'Config': f'configs/{config.name}',
        'Metadata': {
            'Training Data': DATASETS[data],
            'Epochs': counted.epochs,
            'Input Size': f'{counted.size[0]}x{counted.size[1]}',
            'Parameters': counted.params,
            'FLOPs': counted.macs,
        },
    }
    results = _metrics(facts, DATASETS[data])
    if results:  # metrics that were not run are left out
        model['Results'] = results
    if 'weights' in facts:
        model['Weights'] = RELEASE + facts['weights']
    return model


def _metrics(facts: dict[str, Any], dataset: str) -> list[dict[str, Any]]:
    """Return the tasks with measured figures and labelled published figures."""
    tasks: dict[str, dict[str, float]] = {}
    for run in facts.get('measured', [])[:1]:
        tasks['Object Detection'] = {'box AP': round(100 * run['box'][0], 2)}
    published = facts.get('published', {})
    for kind, task in (('box', 'Object Detection'), ('mask', 'Instance Segmentation')):
        if kind in published:
            tasks.setdefault(task, {})[PUBLISHED_LABEL.format(f'{kind} AP')] = published[kind][0]
    for name, figure in zip(('Top 1', 'Top 5'), published.get('imagenet', ()), strict=False):
        label = PUBLISHED_LABEL.format(f'{name} Accuracy')
        tasks.setdefault('Image Classification', {})[label] = figure
    return [
        {'Task': task, 'Dataset': dataset, 'Metrics': metrics} for task, metrics in tasks.items()
    ]


# --- the command


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Write the tables of results and the metafile')
    parser.add_argument('--check', action='store_true', help='only list outdated files')
    return parser.parse_args()


def main(check: bool) -> None:
    """Count all configs, then write or list the outdated files."""
    with redirect_stdout(sys.stderr):  # the libraries' logs
        configs = sorted(project_path('configs').glob('*.py'))
        for config in track(configs, 'counting', disable=not sys.stderr.isatty()):
            count(config)
        files = {METAFILE: metafile(), **{name: page(name) for name in PAGES}}
    old = [f for f, text in files.items() if (ROOT / f).read_text(encoding='utf-8') != text]
    if check and old:
        sys.exit(f'error: outdated files: {", ".join(old)}; run python tools/dev/write_results.py')
    for name in old:
        (ROOT / name).write_text(files[name], encoding='utf-8')
        print(name)


if __name__ == '__main__':
    try:
        main(parse_args().check)
    except (EvitError, OSError) as error:
        sys.exit(f'error: {error}')
