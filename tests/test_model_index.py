"""The list of models for OpenMMLab's tools says what the configs, the papers and the docs say."""

import re

import pytest
import yaml

from evit_mm import model_index
from evit_mm.compare import published_results as published
from evit_mm.errors import ConfigError

from .conftest import ROOT
from .test_configs import CONFIGS


@pytest.fixture(scope='module')
def listed():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index == {'Import': [model_index.FILE]}
    return yaml.safe_load((ROOT / model_index.FILE).read_text())


@pytest.fixture(scope='module')
def models(listed):
    return {model['Name']: model for model in listed['Models']}


def test_the_file_is_the_one_that_the_tool_writes():
    assert (ROOT / model_index.FILE).read_text() == model_index.metafile(), (
        'python tools/model_index.py writes it'
    )


def test_openmmlabs_own_reader_finds_no_fault():
    modelindex = pytest.importorskip('modelindex')  # comes with mmpretrain
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) in (None, [])
    assert len(index.models) == len(CONFIGS)


def test_every_config_is_listed_once_and_each_entry_is_complete(listed):
    assert [ROOT / model['Config'] for model in listed['Models']] == CONFIGS
    collections = {collection['Name'] for collection in listed['Collections']}
    assert collections == {model['In Collection'] for model in listed['Models']}
    for collection in listed['Collections']:
        assert re.fullmatch(r'https://arxiv\.org/abs/\d{4}\.\d{5}', collection['Paper']['URL'])
        assert collection['Paper']['Title'] and (ROOT / 'configs' / collection['README']).is_file()
    for model in listed['Models']:
        assert {'Name', 'In Collection', 'Config', 'Metadata', 'Results'} <= set(model)
        assert model['Metadata']['Parameters'] > 1e6 and model['Metadata']['FLOPs'] > 1e6
        for result in model['Results']:
            assert set(result) == {'Task', 'Dataset', 'Metrics'} and result['Metrics']


def test_published_figures_are_those_of_the_readme_and_belong_to_their_config(models):
    """The README's table of COCO, read as text."""
    text = (ROOT / 'README.md').read_text()
    rows = re.findall(r'\| `configs/(\w+)\.py` \|(.+)\|', text)
    table = {name: row.split('|') for name, row in rows if name.endswith('_coco')}
    found = {}
    for name, model in models.items():
        metrics = model['Results'][0]['Metrics']
        label = 'box AP (published, not measured here)'
        if label in metrics:
            found[name] = metrics[label]
            assert metrics['box AP'] == 'not run'
    expected = {}
    for name, cells in table.items():
        ap = re.match(r'\s*(\d+\.\d)', cells[3])
        if ap:
            expected[name] = float(ap[1])
    assert len(expected) >= 6
    assert found == {**expected, 'mask_rcnn_evit_m4_coco': 32.8}
    mask = models['mask_rcnn_evit_m4_coco']['Results'][1]
    assert mask['Task'] == 'Instance Segmentation'
    assert mask['Metrics']['mask AP (published, not measured here)'] == 31.0


def test_published_accuracies_are_those_of_the_page(models):
    page = (ROOT / 'docs' / 'classification.md').read_text()
    rows = re.findall(r'\| `(\w+_imagenet)` \| (\d+) \| ([\d.]+) \| ([\d.]*) ?\| not run \|', page)
    assert len(rows) == 8
    for name, side, top1, top5 in rows:
        metrics = models[name]['Results'][0]['Metrics']
        assert models[name]['Metadata']['Input Size'] == f'{side}x{side}'
        assert metrics['Top 1 Accuracy'] == 'not run'
        assert metrics['Top 1 Accuracy (published, not measured here)'] == float(top1)
        shown = metrics.get('Top 5 Accuracy (published, not measured here)')
        assert shown == (float(top5) if top5 else None)


@pytest.mark.parametrize('variant', range(6))
def test_counted_classifiers_are_the_published_ones(variant, models):
    metadata = models[f'evit_m{variant}_imagenet']['Metadata']
    known = published.PUBLISHED[f'evit_m{variant}']
    assert metadata['FLOPs'] == pytest.approx(known.macs, rel=0.006)
    assert metadata['Parameters'] == pytest.approx(known.params, rel=0.03)


def test_own_figures_are_those_of_the_results_page(models):
    page = (ROOT / 'docs' / 'results.md').read_text()
    aps = [float(ap) for ap in re.findall(r'^\| (0\.\d{3}) \|', page, re.M)]
    found = [
        models[f'retinanet_evit_m4_{data}']['Results'][0]['Metrics']['box AP']
        for data in ('shapes', 'bccd')
    ]
    assert found == [round(100 * ap, 2) for ap in aps[:2]]


def test_what_was_measured_has_to_stand_in_a_table(tmp_path):
    config = tmp_path / 'retinanet_new_shapes.py'
    config.write_text('"""Measured here: 99."""')
    with pytest.raises(ConfigError, match='no table in README.md or docs/ has a row'):
        model_index.measured_ap(config)
    config.write_text('"""Measured here: see docs/results.md."""')
    assert model_index.measured_ap(config) == 'see docs/results.md'
    config.write_text('"""AP not run."""')
    assert model_index.measured_ap(config) == 'not run'


def test_weights_belong_to_configs_that_exist(models):
    assert set(published.WEIGHTS) <= set(models)
    for name, file in published.WEIGHTS.items():
        assert models[name]['Weights'] == published.RELEASE + file
        assert name.split('_')[-2] in file  # the variant
