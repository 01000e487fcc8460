"""Modules that moved are found by the names that older configs and programs import."""

import importlib
import sys

import pytest

from evit_mm.utils.old_names import MOVED, PACKAGE

# what the modules contained before they moved
OLD = {
    'benchmark': 'SUITES median_and_quartiles time_interleaved',
    'classifier': 'EfficientViTClsHead EfficientViTClassifier ClsVisualizationHook',
    'complexity': 'count_parameters count_macs Complexity measure as_markdown as_records',
    'datasets': 'SHAPE_CLASSES check_coco check_config_data make_shapes',
    'engine': (
        'CheckedRunner train test load_config build_runner load_detector set_device is_classifier '
        'config_faults'
    ),
    'environment': 'EnvironmentFault check_environment version_numbers',
    'export': 'DetectorGraph Exported ExportedDetector ExportedModel export',
    'heads': 'SyncedRetinaHead',
    'metrics': 'HotCocoMetric',
    'optim': 'AGCOptimWrapper AmpAGCOptimWrapper',
    'published': 'Published label_of',
    'tracking': 'add_trackers drop_trackers TrackingHook',
    'training': 'ExactTrainLoop FusedAdamW SafeCheckpointHook',
}


@pytest.mark.parametrize('old', OLD)
def test_a_module_that_moved_is_found_by_its_old_name(old, monkeypatch):
    monkeypatch.delitem(sys.modules, f'evit_mm.{old}', raising=False)
    with pytest.warns(FutureWarning, match=f'^evit_mm.{old} is deprecated .* import from') as said:
        module = importlib.import_module(f'evit_mm.{old}')
    (said,) = [warning for warning in said if 'is deprecated and' in str(warning.message)]
    new = [importlib.import_module(PACKAGE + place) for place in MOVED[old]]
    assert str(said.message).endswith(
        f'; import from {" or ".join(place.__name__ for place in new)} instead'
    )
    for name in OLD[old].split():
        found = getattr(module, name)
        assert any(found is getattr(place, name, None) for place in new), name
        assert getattr(found, '__module__', '') != module.__name__
    assert not [name for name in vars(module) if name.startswith('_') and name[1] != '_']


def test_other_names_lead_nowhere():
    assert set(OLD) == set(MOVED)
    for name in ('evit_mm.nothing', 'evit_mm.models.engine', 'another.engine', 'engine'):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    assert importlib.util.find_spec('evit_mm.engine').name == 'evit_mm.engine'
