"""Tables and metafile say what results.yml and the configs say; it says what papers and logs do."""

import ast
import re

import pytest
import yaml

import write_results
from evit_mm.compare.published_results import PUBLISHED, TIMM_NAMES
from evit_mm.errors import ConfigError
from evit_mm.models import VARIANTS
from tests.configs.test_configs import CONFIGS
from tests.conftest import ROOT
from write_results import METAFILE, PAGES, RESULTS

RELEASE = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'
LABEL = '{} (published, not measured here)'
# typed from the papers: multiply-adds M, parameters M of the classifier (None: unknown at 224 px),
# then COCO's figures
COMPARISON = {
    'mobilenetv2': (300, 3.4, 28.3, 46.7, 29.3, 14.8, 30.7, 38.1),
    'mobilenetv3': (217, 5.4, 29.9, 49.3, 30.8, 14.9, 33.3, 41.1),
    'spnasnet': (365, 4.3, 30.7, 49.8, 32.2, 15.4, 33.9, 41.6),
    'spos': (323, 3.5),
    'mixnet_m': (360, 5.0, 31.3, 51.7, 32.4, 17.0, 35.0, 41.9),
    'efficientnet_b0': (390, 5.3),
    'mobilenetv4_small': (None, None),
    'mobilenetv4_medium': (None, None),
    'shvit_s4': (None, None, 38.8),
    'repvit_m1_1': (1300, None),
    'pvtv2_b0': (600, None, 37.1),
    'evit_m0': (79, 2.3),
    'evit_m1': (167, 3.0),
    'evit_m2': (201, 4.2),
    'evit_m3': (263, 6.9),
    'evit_m4': (299, 8.8, 32.7, 52.2, 34.1, 17.6, 35.3, 46.0),
    'evit_m5': (522, 12.4, 34.3),
}
# of timm's networks without such a config: RetinaNet AP, or Mask R-CNN's box AP and mask AP
RIVALS = {
    'repvit_m1_1': (39.8, 37.2),
    'cpubone_b0_bfrobust': (37.5,),
    'cpubone_b1_bfrobust': (39.0,),
    'cpubone_b2_bfrobust': (40.4,),
}
# top-1 and top-5 on ImageNet-1k
ACCURACIES = {
    'evit_m0': [63.296, 85.150],
    'evit_m1': [68.356, 88.672],
    'evit_m2': [70.786, 90.150],
    'evit_m3': [73.390, 91.350],
    'evit_m4': [74.266, 91.788],
    'evit_m5': [77.124, 93.360],
    'evit_m5_384': [79.8],
    'evit_m5_512': [80.8],
}


@pytest.fixture(scope='module')
def listed():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index == {'Import': [METAFILE]}
    return yaml.safe_load((ROOT / METAFILE).read_text())


@pytest.fixture(scope='module')
def models(listed):
    return {model['Name']: model for model in listed['Models']}


def metrics_of(model):
    return {
        name: value for row in model.get('Results', ()) for name, value in row['Metrics'].items()
    }


def test_every_file_is_what_the_command_writes():
    write_results.main(check=True)  # exits, naming the files that are out of date


def test_a_page_without_a_place_for_its_table_is_named(monkeypatch):
    monkeypatch.setitem(PAGES, 'NOTICE', {'coco': write_results.results_table})
    with pytest.raises(ConfigError, match="NOTICE has no '<!-- begin coco -->'"):
        write_results.page('NOTICE')


def test_a_stale_file_is_named_and_not_written(monkeypatch):
    monkeypatch.setattr(write_results, 'PAGES', {})
    monkeypatch.setattr(write_results, 'metafile', lambda: 'other')
    with pytest.raises(SystemExit, match=f'outdated files: {METAFILE}'):
        write_results.main(check=True)
    assert (ROOT / METAFILE).read_text() != 'other'


def test_a_config_that_is_not_listed_is_named(tmp_path):
    config = tmp_path / 'retinanet_new_coco.py'
    config.write_text(f"_base_ = '{ROOT}/configs/retinanet_lite_evit_m0_coco.py'\n")
    with pytest.raises(ConfigError, match=r'retinanet_new_coco\.py.*add the config'):
        write_results._model(config)


def test_openmmlabs_own_reader_finds_no_fault():
    modelindex = pytest.importorskip('modelindex')  # comes with mmpretrain
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) in (None, [])
    assert len(index.models) == len(CONFIGS)


def test_every_config_is_listed_once_and_each_entry_is_complete(listed):
    assert [ROOT / model['Config'] for model in listed['Models']] == CONFIGS
    assert set(RESULTS['configs']) == {path.stem for path in CONFIGS}
    collections = {collection['Name'] for collection in listed['Collections']}
    assert collections == {model['In Collection'] for model in listed['Models']}
    for collection in listed['Collections']:
        assert re.fullmatch(r'https://arxiv\.org/abs/\d{4}\.\d{5}', collection['Paper']['URL'])
        assert collection['Paper']['Title'] and (ROOT / 'configs' / collection['README']).is_file()
        assert re.fullmatch(r'v\d+\.\d+\.\d+', collection['Code']['Version'])
        url = collection['Code']['URL']
        assert url.startswith('https://') or (ROOT / 'configs' / url).is_file()
        assert collection['Metadata']['Training Data'] and collection['Metadata']['Architecture']
    for model in listed['Models']:
        assert {'Name', 'In Collection', 'Config', 'Metadata'} <= set(model)
        assert model['Metadata']['Parameters'] > 1e6 and model['Metadata']['FLOPs'] > 1e6
        for result in model.get('Results', ()):
            assert set(result) == {'Task', 'Dataset', 'Metrics'} and result['Metrics']
            assert all(isinstance(value, float) for value in result['Metrics'].values())


def test_published_figures_are_the_papers():
    found = {
        name: (*(figure and figure / 1e6 for figure in (row.macs, row.params)), *row.coco)
        for name, row in PUBLISHED.items()
    }
    assert found == COMPARISON
    published = {stem: facts.get('published', {}) for stem, facts in RESULTS['configs'].items()}
    accuracies = {stem: row['imagenet'] for stem, row in published.items() if 'imagenet' in row}
    assert accuracies == {f'{name}_imagenet': row for name, row in ACCURACIES.items()}
    mask_rcnn = published['mask_rcnn_evit_m4_coco']
    assert (mask_rcnn['box'], mask_rcnn['mask']) == ([32.8, 54.4, 34.5], [31.0, 51.2, 32.2])
    rivals = {name: facts.get('published', {}) for name, facts in RESULTS['timm'].items()}
    assert {
        name: (*row['box'], *row.get('mask', ())) for name, row in rivals.items() if row
    } == RIVALS
    rows = [*published.values(), *rivals.values()]
    assert all(row['source'] in RESULTS['sources'] for row in rows if row)
    assert set(TIMM_NAMES.values()) < set(PUBLISHED)


def test_no_published_figure_stands_in_two_places():
    class NoDuplicates(yaml.SafeLoader):
        """YAML keeps the last of two equal keys."""

        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            return super().construct_mapping(node, deep)

    text = (ROOT / 'evit_mm' / 'compare' / 'results.yml').read_text()
    assert yaml.load(text, NoDuplicates) == RESULTS
    # one row for each network and detector
    retinanets = [
        TIMM_NAMES.get(network, network)
        for network, facts in RESULTS['timm'].items()
        if 'published' in facts and 'mask' not in facts['published']
    ]
    retinanets += [
        name
        for name in RESULTS['backbones']
        if 'published' in RESULTS['configs'][f'retinanet_{name}_coco']
    ]
    assert len(retinanets) == len(set(retinanets)) > 10
    labels = [row['label'] for row in (*RESULTS['backbones'].values(), *RESULTS['without_config'])]
    assert len(labels) == len(set(labels))
    # the code reads them from there
    figures = {figure for row in (*COMPARISON.values(), *RIVALS.values()) for figure in row[2:3]}
    figures |= {figure for row in RIVALS.values() for figure in row}
    for path in (ROOT / 'evit_mm').rglob('*.py'):
        nodes = ast.walk(ast.parse(path.read_text()))
        typed = {node.value for node in nodes if isinstance(node, ast.Constant)}
        assert not typed & figures, path


def test_licences_of_all_weights_allow_commercial_use_or_are_not_stated():
    table = write_results.licences_table(ROOT) + write_results.timm_table(ROOT / 'docs')
    rows = [line.strip('| ').split(' | ') for line in table if line.startswith('| ')]
    licences = {row[0]: row[-1] for row in rows if row[0] != 'network'}
    assert len(licences) == len(RESULTS['backbones']) + len(RESULTS['timm'])
    unknown = {name for name, licence in licences.items() if licence == 'not stated'}
    assert unknown == {'SPOS', *(f'`timm:cpubone_b{i}_bfrobust`' for i in range(3))}
    assert set(licences.values()) == {'Apache-2.0', 'MIT', 'not stated'}
    assert licences['EfficientViT-M4'] == licences['SHViT-S4'] == 'MIT'


def test_published_figures_in_the_metafile_belong_to_their_config_and_are_labelled(models):
    found = {name: metrics_of(model) for name, model in models.items()}
    aps = {
        name: row[LABEL.format('box AP')]
        for name, row in found.items()
        if LABEL.format('box AP') in row
    }
    expected = {f'retinanet_{name}_coco': row[2] for name, row in COMPARISON.items() if row[2:]}
    assert aps == {**expected, 'mask_rcnn_evit_m4_coco': 32.8}
    assert found['mask_rcnn_evit_m4_coco'][LABEL.format('mask AP')] == 31.0
    for name, accuracies in ACCURACIES.items():
        names = [LABEL.format(f'{top} Accuracy') for top in ('Top 1', 'Top 5')]
        assert found[f'{name}_imagenet'] == dict(zip(names, accuracies, strict=False))
    for name, row in found.items():  # nothing on COCO or ImageNet was measured here
        assert name.endswith(('_shapes', '_bccd')) or not {*row} & {'box AP', 'mask AP'}


def test_docstrings_say_what_is_published():
    for stem, facts in RESULTS['configs'].items():
        docstring = ast.get_docstring(ast.parse((ROOT / 'configs' / f'{stem}.py').read_text()))
        for kind in ('box', 'mask', 'imagenet'):
            for figure in facts.get('published', {}).get(kind, ())[:1]:
                assert re.search(rf'\b{figure}', docstring), stem
        assert ('Published' in docstring) == ('published' in facts), stem
        assert ('Measured here' in docstring) == ('measured' in facts), stem


@pytest.mark.parametrize('arch', VARIANTS)
def test_counted_classifiers_are_the_published_ones(arch, models):
    metadata = models[f'evit_{arch}_imagenet']['Metadata']
    known = PUBLISHED[f'evit_{arch}']
    assert metadata['Input Size'] == '224x224'
    assert metadata['FLOPs'] == pytest.approx(known.macs, rel=0.006)
    assert metadata['Parameters'] == pytest.approx(known.params, rel=0.03)


def test_measured_figures_are_those_of_the_logs(models):
    measured = {stem: x['measured'] for stem, x in RESULTS['configs'].items() if 'measured' in x}
    assert len(measured) == 4
    for stem, runs in measured.items():
        assert metrics_of(models[stem]) == {'box AP': pytest.approx(100 * runs[0]['box'][0])}
        for run in runs:
            assert {'data', 'command', 'date', 'machine', 'training'} <= set(run)
            if 'log' in run:
                log = (ROOT / 'docs' / 'logs' / run['log']).read_text()
                figures = re.findall(r'bbox_mAP_copypaste: (.+)', log)[-1].split()
                assert run['box'] == [float(figure) for figure in figures]
                assert log.startswith(f'$ {run["command"]}\n')
                assert run['date'].strftime('%Y/%m/%d') in log
                assert run['machine'] in RESULTS['machines']


def test_weights_belong_to_configs_that_exist(models):
    files = {stem: x['weights'] for stem, x in RESULTS['configs'].items() if 'weights' in x}
    assert len(files) == 8
    for name, file in files.items():
        assert models[name]['Weights'] == RELEASE + file
        assert name.split('_')[-2] in file  # the variant


def test_a_network_that_needs_padded_images_is_counted_with_their_padding(tmp_path):
    def counted(size):
        config = tmp_path / f'mine{size[1]}.py'
        config.write_text(
            "_base_ = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'\n"
            "custom_imports = dict(imports=['evit_mm'], allow_failed_imports=False)\n"
            'model = dict(\n'
            "    backbone=dict(_delete_=True, type='EfficientViT', arch='m0', out_stem=True,\n"
            '                  out_indices=(0, 1)),\n'
            '    neck=dict(in_channels=[32, 64, 128]),\n'
            ')\n'
            f"pipeline = [dict(type='Resize', scale={size}, keep_ratio=True)]\n"
            'test_dataloader = dict(dataset=dict(pipeline=pipeline))\n'
        )
        return write_results.count(config)

    padded = counted((320, 240))
    assert padded.size == (320, 256) and padded.macs == counted((320, 256)).macs
