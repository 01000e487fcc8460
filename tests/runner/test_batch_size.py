"""The search for the largest batch size: beside a count by hand, and on a stand-in for a GPU."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData

from evit_mm.data import make_shapes
from evit_mm.errors import ConfigError
from evit_mm.runner import batch_size
from evit_mm.runner.batch_size import find_size, largest_batch, largest_samples, search
from evit_mm.runner.batch_size import set_batch_size as set_size
from evit_mm.runner.config import load_config
from evit_mm.runner.train import train
from tests.models import test_classifier
from tests.trainings import write_config

# each iteration has another size, as if it were a later one of a training
SYNCED = """
scale = (96, 96)
optim_wrapper = dict(accumulative_counts=4)
resize = dict(type='BatchSyncRandomResize', random_size_range=(96, 128), interval=1)
model.update(data_preprocessor=dict(batch_augments=[resize]))
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data') / 'set', 40, 2, size=(96, 80), quiet=True)


@pytest.mark.parametrize('least', [1, 2])
def test_the_size_is_at_most_an_eighth_below_the_largest_that_fits(least):
    draw = random.Random(0)
    for _ in range(300):
        largest, most, tried = draw.randint(0, 500), draw.randint(least, 400), []
        found = search(lambda size: tried.append(size) or size <= largest, least, most)  # noqa: B023
        assert len({*tried}) == len(tried) < 16 and least <= min(tried) and max(tried) <= most
        assert found == max((size for size in tried if size <= largest), default=0)
        largest = min(largest, most) if largest >= least else 0
        assert largest - max(largest // 8, 1) < found <= largest or found == largest


def use_stand_in(replace):
    """Give torch a GPU with memory for nine images. Return the sizes of the batches."""
    sizes, step = [], BaseModel.train_step

    def train_step(model, data, optim_wrapper):
        sizes.append(len(data['inputs']))
        if sizes[-1] > 9:
            raise torch.cuda.OutOfMemoryError
        return step(model, data, optim_wrapper)

    replace(BaseModel, 'train_step', train_step)
    memory = {
        'empty_cache': lambda: None,
        'reset_peak_memory_stats': lambda: None,
        'mem_get_info': lambda: (2**30, 2**31),
        'max_memory_reserved': lambda: sizes[-1] * 100 * 2**20,
    }
    for name, function in memory.items():
        replace(torch.cuda, name, function)
    return sizes


@pytest.fixture
def gpu(monkeypatch):
    return use_stand_in(monkeypatch.setattr)


def test_a_gpu_that_runs_out_of_memory_and_goes_on(gpu, data, tmp_path, monkeypatch):
    cfg = load_config(write_config(tmp_path, data, SYNCED), work_dir=str(tmp_path / 'work'))
    said = []
    assert find_size(cfg, 2, said.append) == 9
    assert gpu == [1, 1, 2, 2, 4, 4, 8, 8, 16, 12, 10, 9, 9]
    assert said[3:6] == ['  8: 0.78 GiB', '  16: out of memory', '  12: out of memory']
    assert said[-2] == 'batch size: 9 per process (limit: 0.90 GiB, 90 % of the unused memory)'
    assert said[-1] == 'the learning rate is for batch size 8; --auto-scale-lr scales it'
    monkeypatch.setattr(batch_size, 'SHARE', 0.5)  # 512 MiB
    assert find_size(cfg, 2, said.append) == 5
    monkeypatch.setattr(batch_size, 'SHARE', 0.05)
    with pytest.raises(ConfigError, match=r'tiny\.py: batch size 1 does not fit into 0\.05 GiB'):
        find_size(cfg, 1, said.append)


def test_a_classifier_starts_with_two_images(gpu, tmp_path):
    images = test_classifier.draw_images(tmp_path / 'images', (('train', 2), ('val', 1)))
    config = test_classifier.write_config(tmp_path, images)
    cfg = load_config(config, work_dir=str(tmp_path / 'work'))
    assert find_size(cfg, 1, lambda _: None) == 6
    assert gpu == [2, 2, 4, 4, 6, 6]


def sample(height, width, objects):
    boxes = InstanceData(bboxes=torch.zeros(objects, 4))
    data = BaseDataElement(gt_instances=boxes, metainfo={'img_shape': (height, width)})
    return {'inputs': torch.ones(3, height, width), 'data_samples': data}


def test_a_batch_has_the_largest_image_and_the_most_objects():
    images = [sample(20, 30, 1), sample(40, 50, 2), sample(60, 10, 9), sample(30, 55, 5), None]
    found = largest_samples(images)
    assert [x['inputs'].shape for x in found] == [(3, 60, 55)] * 2
    assert [len(x['data_samples'].gt_instances) for x in found] == [2, 9]
    found = largest_samples(images, grouped=True)  # without the portrait
    assert [x['inputs'].shape for x in found] == [(3, 40, 55)] * 2
    assert [len(x['data_samples'].gt_instances) for x in found] == [2, 5]
    assert found[1]['inputs'].sum() == 3 * 30 * 55 and images[3]['inputs'].shape == (3, 30, 55)
    assert found[0]['data_samples'].img_shape == (40, 55)
    with pytest.raises(ConfigError, match='no training image can be read'):
        largest_samples([None])


@pytest.mark.parametrize('wanted', ['0', '-3', '2.5', 'most', 0])
def test_other_words_are_refused(wanted):
    with pytest.raises(ConfigError, match='must be a positive integer or auto'):
        set_size(Config({'train_dataloader': {}}), wanted)


def test_the_size_is_set_once_and_searched_only_on_a_gpu(data, tmp_path):
    config = write_config(tmp_path, data)
    with pytest.raises(ConfigError, match='both set the batch size'):
        train(config, batch_size='4', cfg_options={'batch_size': 4})
    with pytest.raises(ConfigError, match='auto needs a CUDA GPU, not cpu; give a number; on a C'):
        train(config, batch_size='auto', device='cpu')


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(batch_size, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 3)


# a child process that answers as a search does, but at once
ANSWER = """
import json, sys
from pathlib import Path
folder, device, processes = sys.argv[1:]
print('  1:', device, processes)
config = Path(folder, 'config.py')
assert 'RetinaNet' in config.read_text()
Path(folder, 'result.json').write_text(json.dumps({}))
"""


def test_a_child_process_searches(on_gpu, data, tmp_path, monkeypatch, capsys):
    cfg = load_config(write_config(tmp_path, data))
    monkeypatch.setattr(batch_size, 'CHILD', ANSWER.format("{'size': 7}"))
    assert largest_batch(cfg, 2) == 7
    assert capsys.readouterr().out == 'searching for the largest batch size\n  1: cuda:3 2\n'
    monkeypatch.setattr(batch_size, 'CHILD', ANSWER.format("{'error': f'{config}: no'}"))
    with pytest.raises(ConfigError, match=rf'^{cfg.filename}: no$'):
        largest_batch(cfg)
    monkeypatch.setattr(batch_size, 'CHILD', 'import os; os.kill(os.getpid(), 9)')
    with pytest.raises(ConfigError, match=r'tiny\.py: the search .* failed \(exit status -9\); gi'):
        largest_batch(cfg)


def test_what_a_child_process_says(gpu, data, tmp_path, monkeypatch, capfd):
    def searched():
        batch_size.search_in_child()
        return json.loads((tmp_path / 'result.json').read_text())

    monkeypatch.setattr('sys.argv', ['', str(tmp_path), 'cpu', '10'])
    file = Path(write_config(tmp_path, data, SYNCED)).rename(tmp_path / 'config.py')
    assert searched() == {'size': 4}
    assert capfd.readouterr().out.splitlines()[:4] == [
        *('  1: 0.10 GiB', '  2: 0.20 GiB', '  4: 0.39 GiB'),
        'batch size: 4 per process (limit: there are 40 images)',
    ]
    monkeypatch.setattr(torch.cuda, 'max_memory_reserved', lambda: 1 / 0)
    assert searched() == {
        'error': f'{file}: the search for a batch size failed (ZeroDivisionError: division by '
        'zero); give --batch-size a number'
    }
    file.write_text(file.read_text() + "model['backbone']['type'] = 'EfficientViTT'\n")
    assert f'{file}: model.backbone.type: EfficientViTT is not in' in searched()['error']


@pytest.mark.slow
def test_the_real_child_process(on_gpu, data, tmp_path, monkeypatch, capsys):
    begin = 'from tests.runner import test_batch_size as tests; tests.use_stand_in(setattr)'
    begin += '; tests.batch_size.set_device = print'
    monkeypatch.setattr(batch_size, 'CHILD', f'{begin}; {batch_size.CHILD}')
    assert largest_batch(load_config(write_config(tmp_path, data)), 10) == 4
    said = [line.partition(':')[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert said == [
        '  1',
        '  2',
        '  4',
        'batch size',
        'the learning rate is for batch size 8; --auto-scale-lr scales it',
    ]


def test_one_of_several_processes_searches(on_gpu, data, tmp_path, monkeypatch):
    cfg, joined, sent = load_config(write_config(tmp_path, data)), [], []
    monkeypatch.setattr(batch_size, 'join_processes', lambda *args: joined.append(args[0]))

    def size_of(rank, search, broadcast):
        monkeypatch.setattr(batch_size, 'get_dist_info', lambda: (rank, 4))
        monkeypatch.setattr(batch_size, 'largest_batch', search)
        monkeypatch.setattr(batch_size, 'broadcast_object_list', broadcast)
        set_size(cfg, 'auto', 'pytorch')
        return cfg.train_dataloader.batch_size

    def fails(cfg, processes):
        raise ConfigError('nothing fits')

    assert size_of(0, lambda cfg, processes: 10 * processes, sent.extend) == 40
    with pytest.raises(ConfigError, match='nothing fits'):
        size_of(0, fails, sent.extend)
    assert sent[0] == 40 and str(sent[1]) == 'nothing fits' and joined == ['pytorch'] * 2
    # the others do not search
    assert size_of(1, None, lambda found: found.__setitem__(0, 9)) == 9
    with pytest.raises(ConfigError, match='nothing fits'):
        size_of(1, None, lambda found: found.__setitem__(0, sent[1]))


@pytest.mark.slow
def test_a_training_has_the_size_and_its_resume_keeps_it(data, tmp_path, monkeypatch, capsys):
    config, work = write_config(tmp_path, data, 'train_cfg = dict(max_epochs=1)\n'), tmp_path / 'w'
    monkeypatch.setattr(batch_size, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(batch_size, 'largest_batch', lambda cfg, processes: 20)
    runner = train(config, str(work), device='cpu', batch_size='auto', auto_scale_lr=True)
    assert runner.train_dataloader.batch_sampler.batch_size == 20
    recorded = Config.fromfile(work / 'tiny.py')
    assert recorded.train_dataloader.batch_size == 20
    base = recorded.auto_scale_lr.base_batch_size
    lr = runner.optim_wrapper.optimizer.param_groups[0]['initial_lr']
    assert lr == pytest.approx(recorded.optim_wrapper.optimizer.lr * 20 / base)
    # a resume does not search again, and needs no GPU
    monkeypatch.undo()
    options = {'train_cfg.max_epochs': 2}
    resumed = train(
        config, str(work), device='cpu', resume='auto', batch_size='auto', cfg_options=options
    )
    assert resumed.train_dataloader.batch_sampler.batch_size == 20 and resumed.epoch == 2
    said = capsys.readouterr().out
    assert re.search('batch size: 20, as in the training that is resumed', said)
