"""The search for the largest batch size: beside a count by hand, a stand-in for a GPU, for real."""

import random
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData

from evit_mm.data import make_shapes
from evit_mm.errors import ConfigError
from evit_mm.runner import batch_size
from evit_mm.runner.batch_size import available_memory, largest_samples, search, set_batch_size
from evit_mm.runner.config import load_config
from evit_mm.runner.train import train
from tests.trainings import write_config


def linear(base, slope, limit=None):
    """A model's memory in MiB; from ``limit`` on, memory runs out."""
    return lambda size: None if limit and size >= limit else base + slope * size


@pytest.mark.parametrize('predict', [False, True])
def test_the_size_is_at_most_an_eighth_below_the_largest_that_fits(predict):
    draw = random.Random(0)
    for _ in range(300):
        base, slope, most = draw.uniform(0, 900), draw.uniform(1, 90), draw.randint(1, 400)
        budget = draw.uniform(base, 9000)
        largest = max((n for n in range(1, most + 1) if base + slope * n <= budget), default=0)
        tried = list(search(linear(base, slope), budget, most, predict))
        sizes = [trial.size for trial in tried]
        assert len(set(sizes)) == len(sizes) < 16 and max(sizes) <= most
        found = max((trial.size for trial in tried if trial.fits), default=0)
        assert largest - max(largest // 8, 1) < found <= largest or found == largest
        over = [trial for trial in tried if not trial.predicted and not trial.fits]
        # on a CPU, hardly anything is tried that does not fit
        assert not predict or all(trial.size <= 2 for trial in over)


def test_memory_that_runs_out_is_a_size_that_does_not_fit():
    tried = list(search(linear(0, 1, limit=25), 1000, 400))
    assert [(t.size, t.fits) for t in tried] == [
        *((2**i, True) for i in range(5)), (32, False), (24, True), (28, False), (26, False)
    ]  # fmt: skip
    assert [str(t) for t in tried[3:6]] == ['8: 0.01 GiB', '16: 0.02 GiB', '32: out of memory']
    assert not any(t.fits for t in search(linear(0, 1, limit=1), 1000, 400))


class Overflowing(torch.nn.Module):
    """A model whose GPU has memory for five images."""

    def train_step(self, data, optim_wrapper):
        if len(data['inputs']) > 5:
            raise torch.cuda.OutOfMemoryError
        return {}


def test_a_gpu_that_runs_out_of_memory_and_goes_on(monkeypatch):
    calls = []
    for name in ('empty_cache', 'reset_peak_memory_stats'):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, 'max_memory_reserved', lambda: 7 * 2**20)
    iteration = batch_size.Iteration.__new__(batch_size.Iteration)
    vars(iteration).update(
        model=Overflowing(),
        optimizer=SimpleNamespace(zero_grad=lambda: calls.append('zero_grad')),
        collate=lambda samples: {'inputs': [sample['inputs'] for sample in samples]},
        samples=[{'inputs': torch.zeros(3, 4, 4)}] * 2,
        on_gpu=True,
        has_stepped=False,
    )
    tried = list(search(iteration.peak, 100, 64))
    assert max(t.size for t in tried if t.fits) == 5
    assert {t.mib for t in tried} == {7.0, None} and calls.count('zero_grad') == len(tried)


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


def test_the_limit_of_a_container_counts(tmp_path):
    group = tmp_path / 'memory'
    group.mkdir()
    (tmp_path / 'memory.max').write_text('max\n')
    (group / 'memory.limit_in_bytes').write_text(str(500 * 2**20))
    (group / 'memory.usage_in_bytes').write_text(str(300 * 2**20))
    (group / 'memory.stat').write_text(f'cache 7\ntotal_inactive_file {100 * 2**20}\n')
    assert list(batch_size._unused_in_groups(tmp_path)) == [300.0]
    (tmp_path / 'memory.max').write_text(str(80 * 2**20))
    (tmp_path / 'memory.current').write_text(str(70 * 2**20))
    (tmp_path / 'memory.stat').write_text('inactive_file 0\n')
    assert 10.0 in list(batch_size._unused_in_groups(tmp_path))
    assert 0 < available_memory() < 2**30


@pytest.mark.parametrize('wanted', ['0', '-3', '2.5', 'most', 0])
def test_other_words_are_refused(wanted, tmp_path):
    cfg = load_config(write_config(tmp_path, tmp_path))
    with pytest.raises(ConfigError, match='must be a positive integer or auto'):
        set_batch_size(cfg, wanted)
    with pytest.raises(ConfigError, match='both set the batch size'):
        train(str(tmp_path / 'tiny.py'), batch_size='4', cfg_options={'batch_size': 4})


class Child:
    """A child process that has answered."""

    images, free = 50, 8.0

    def __init__(self, cfg, device):
        assert device == 'cpu'

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def measure(self, size):
        return 10.0 + 10 * size


def test_processes_share_memory_and_images(tmp_path, monkeypatch, capsys):
    cfg = load_config(write_config(tmp_path, tmp_path))
    monkeypatch.setattr(batch_size, '_Child', Child)
    monkeypatch.setattr(batch_size, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(batch_size, 'available_memory', lambda: 210 / 0.9)
    assert [batch_size.largest_batch(cfg, n) for n in (1, 2, 10)] == [20, 9, 1]
    assert 'the learning rate is for batch size' in capsys.readouterr().out
    monkeypatch.setattr(batch_size, 'available_memory', lambda: 19 / 0.9)
    with pytest.raises(ConfigError, match=r'tiny\.py: one image does not fit into 0.02 GiB'):
        batch_size.largest_batch(cfg)


@pytest.mark.slow
def test_a_cpu_finds_a_size_trains_with_it_and_keeps_it(tmp_path, monkeypatch, capsys):
    data = make_shapes(tmp_path / 'set', 40, 2, size=(96, 80), quiet=True)
    extra = 'train_cfg = dict(max_epochs=1)\noptim_wrapper = dict(accumulative_counts=4)\n'
    config, work = write_config(tmp_path, data, extra), tmp_path / 'work'
    torch.manual_seed(3)
    state = torch.get_rng_state()
    cfg = load_config(config)
    set_batch_size(cfg, 'auto')
    said = capsys.readouterr().out
    assert cfg.train_dataloader.batch_size == 40  # all that there are
    assert 'batch size: 40 per process (limit: there are 40 images)' in said
    assert torch.equal(torch.get_rng_state(), state)
    # a machine with little memory: room for less than the whole data set
    peaks = [float(x) for x in re.findall(r'^  \d+: (\d\.\d\d) GiB$', said, re.M)]
    limit = 1024 * (peaks[0] + (peaks[-1] - peaks[0]) / 2) / 0.9
    monkeypatch.setattr(batch_size, 'available_memory', lambda: limit)
    runner = train(config, str(work), device='cpu', seed=1, batch_size='auto', auto_scale_lr=True)
    found = runner.train_dataloader.batch_sampler.batch_size
    assert 1 <= found < 40
    recorded = Config.fromfile(work / 'tiny.py')
    assert recorded.train_dataloader.batch_size == found
    base = recorded.auto_scale_lr.base_batch_size
    lr = runner.optim_wrapper.optimizer.param_groups[0]['initial_lr']
    assert lr == pytest.approx(recorded.optim_wrapper.optimizer.lr * found / base)
    # a resume does not search again
    monkeypatch.setattr(batch_size, 'available_memory', lambda: 0)
    options = {'train_cfg.max_epochs': 2}
    resumed = train(
        config, str(work), device='cpu', resume='auto', batch_size='auto', cfg_options=options
    )
    assert resumed.train_dataloader.batch_sampler.batch_size == found and resumed.epoch == 2
    assert f'batch size: {found}, as in the training that is resumed' in capsys.readouterr().out
