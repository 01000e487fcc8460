"""Losses that are not finite, images that cannot be read, workers that die: named, never silent."""

import evit_mm.ops  # noqa: F401  # isort: skip - before anything imports mmcv.ops

import errno
import json
import multiprocessing
import os
import pickle
import re
import signal
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement, InstanceData
from torch.utils.data import BatchSampler, DataLoader

from evit_mm.data import make_shapes
from evit_mm.data.coco_dataset import TolerantCocoDataset
from evit_mm.errors import ConfigError, DataError, EvitError
from evit_mm.runner.faults import named_faults
from evit_mm.runner.guards import NonFiniteLossHook, _plain
from evit_mm.runner.loader import GuardedDataset, Seeded, exact_loader
from evit_mm.runner.train import train as run_training
from tests.trainings import write_config

COMMON = """
train_cfg = dict(max_epochs=1, val_interval=1)
train_dataloader['batch_size'] = 4
"""


@pytest.fixture
def data(tmp_path):
    return make_shapes(tmp_path / 'set', 16, 4, size=(96, 80), quiet=True)


def train(tmp_path, data, extra='', hooks=(), **options):
    config = write_config(tmp_path, data, COMMON + extra)
    runner = run_training(
        config, str(tmp_path / 'work'), seed=1, device='cpu', cfg_options=options, hooks=hooks
    )
    return runner, next((tmp_path / 'work').glob('*/*.log')).read_text()


# --- a loss that is not finite


class PoisonHook(Hook):
    """Make a loss term of one iteration NaN; remember the weights around it."""

    priority = 'VERY_HIGH'

    def __init__(self, iteration, forever=False):
        self.iteration, self.forever, self.before = iteration, forever, None

    def before_train(self, runner):
        inner = runner.model.loss

        def loss(*args, **kwargs):
            terms = inner(*args, **kwargs)
            at = runner.iter + 1
            if at == self.iteration or (self.forever and at > self.iteration):
                self.before = [p.detach().clone() for p in runner.model.parameters()]
                terms['loss_bbox'] = [term * float('nan') for term in terms['loss_bbox']]
            return terms

        runner.model.loss = loss

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.before is not None and runner.iter + 1 == self.iteration:
            after = runner.model.parameters()
            self.unchanged = all(map(torch.equal, self.before, after))


def test_a_nan_stops_the_run_by_term_and_image_and_keeps_the_batch(data, tmp_path):
    with pytest.raises(EvitError, match='^loss_bbox .nan. became NaN') as caught:
        train(tmp_path, data, hooks=[PoisonHook(3)])
    text = str(caught.value)
    assert (
        'iteration 3' in text and 'non_finite_loss.policy=skip' in text and 'loss_cls' not in text
    )
    file = tmp_path / 'work' / 'non_finite' / 'iter_3_rank_0.pth'
    batch = torch.load(file, weights_only=True)
    assert str(file) in text and batch['iteration'] == 3
    assert [x.shape for x in batch['inputs']] == [(3, 160, 192)] * 4
    boxes = json.loads((data / 'annotations' / 'instances_train.json').read_text())
    names = {image['id']: image['file_name'] for image in boxes['images']}
    for sample in batch['data_samples']:
        assert f"{names[sample['img_id']]}' (id {sample['img_id']})" in text
        found = sample['gt_instances']['bboxes']
        number = sum(a['image_id'] == sample['img_id'] for a in boxes['annotations'])
        assert found.shape == (number, 4) and len(sample['gt_instances']['labels']) == number


def test_a_nan_can_be_skipped_and_is_counted(data, tmp_path):
    poison = PoisonHook(2)
    runner, log = train(
        tmp_path, data, hooks=[poison], **{'default_hooks.non_finite_loss.policy': 'skip'}
    )
    assert poison.unchanged and runner.iter == 4
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
    assert '1 of 4 batches were skipped' in log
    (scalars,) = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    assert 'NaN' not in scalars.read_text()
    assert len(list((tmp_path / 'work' / 'non_finite').iterdir())) == 1


def test_a_nan_without_end_stops_even_skipping(data, tmp_path, monkeypatch):
    monkeypatch.setattr('evit_mm.runner.guards.MAX_SKIPPED_IN_A_ROW', 2)
    skip = {'default_hooks.non_finite_loss.policy': 'skip'}
    with pytest.raises(EvitError, match=r'iteration 3 .*\(2 batches in a row\)'):
        train(tmp_path, data, hooks=[PoisonHook(2, forever=True)], **skip)


class Diverged(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return {'loss_bbox': self.weight * float('nan')}


def test_a_nan_stops_where_nothing_else_is_asked_for(tmp_path):
    model = Diverged()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1))
    runner = SimpleNamespace(model=model, optim_wrapper=wrapper, iter=4, rank=0, work_dir=tmp_path)
    hook = NonFiniteLossHook()
    hook.before_train(runner)
    sample = BaseDataElement(metainfo={'img_path': 'a.jpg'})
    batch = {'inputs': torch.rand(1, 3, 8, 8), 'data_samples': [sample]}
    hook.before_train_iter(runner, 0, batch)
    with pytest.raises(EvitError, match="loss_bbox .nan. became NaN .* iteration 5 on 'a.jpg'"):
        model.train_step(batch, wrapper)
    kept = torch.load(tmp_path / 'non_finite' / 'iter_5_rank_0.pth', weights_only=True)
    assert torch.equal(kept['inputs'], batch['inputs']) and model.weight.item() == 1


class Sometimes(BaseModel):
    """A weight whose loss is multiplied by the batch; a second one has nothing to do with it."""

    def __init__(self):
        super().__init__()
        self.weight, self.idle = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return {'loss_a': self.weight * inputs, 'loss_b': self.weight}


def test_a_skipped_batch_leaves_no_trace_in_weights_momentum_or_accumulation(tmp_path):
    inf = float('inf')

    def trained(*batches, count=1):
        model, said = Sometimes(), []
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        wrapper = OptimWrapper(optimizer, accumulative_counts=count)
        wrapper.initialize_count_status(model, 0, 100)
        runner = SimpleNamespace(
            model=model, optim_wrapper=wrapper, iter=0, rank=0, work_dir=tmp_path,
            message_hub=MessageHub(str(batches)), logger=SimpleNamespace(warning=said.append),
        )  # fmt: skip
        hook = NonFiniteLossHook('skip')
        hook.before_train(runner)
        for runner.iter, value in enumerate(batches):
            sample = BaseDataElement(metainfo={'img_path': f'{runner.iter}.jpg', 'img_id': 7})
            batch = {'inputs': torch.tensor(value), 'data_samples': [sample]}
            hook.before_train_iter(runner, runner.iter, batch)
            outputs = model.train_step(batch, wrapper)
            hook.after_train_iter(runner, runner.iter, batch, outputs)
            assert (outputs == {}) == (not np.isfinite(value))  # nothing to log
        runner.iter += 1
        hook.after_train(runner)
        assert set(model(torch.tensor(inf), mode='loss')) == {'loss_a', 'loss_b'}  # unwatched
        return model.weight.item(), said

    weight, said = trained(2.0, inf, 3.0, inf, 1.0)
    assert weight == trained(2.0, 3.0, 1.0)[0]
    assert said[0].startswith(
        "loss_a (inf) became NaN or infinite in iteration 2 on '1.jpg' (id 7)"
    )
    assert said[-1].startswith('2 of 5 batches were skipped') and len(said) == 3
    # of an accumulation, what came before is lost, and the step itself is left out
    assert trained(5.0, inf, 3.0, 1.0, count=2)[0] == trained(3.0, 1.0, count=2)[0]
    expected = 1 - 0.1 * ((3.0 + 1) / 3 + 0.1)  # the last batch and the weight decay
    assert trained(5.0, inf, 3.0, count=3)[0] == pytest.approx(expected)
    assert trained(2.0)[1] == []
    nineteen = [inf] * 19
    assert trained(*nineteen, 1.0, *nineteen)[1][-1].startswith('38 of 39 batches')
    with pytest.raises(EvitError, match=r'iteration 21 .*\(20 batches in a row\)'):
        trained(1.0, *nineteen, inf)


def test_the_kept_batch_is_plain_values():
    instances = InstanceData(
        bboxes=HorizontalBoxes(torch.ones(1, 4)), masks=BitmapMasks(np.ones((1, 2, 3)), 2, 3)
    )
    sample = DetDataSample(
        metainfo={'scale': (1.5, np.float32(2)), 'flip': None, 'path': Path('x')}
    )
    sample.gt_instances = instances
    found = _plain({'data_samples': (sample,), 3: np.arange(2)})
    assert found['3'] == [0, 1]
    (kept,) = found['data_samples']
    assert kept['scale'] == [1.5, 2.0] and kept['flip'] is None and kept['path'] == repr(Path('x'))
    boxes, masks = kept['gt_instances']['bboxes'], kept['gt_instances']['masks']
    assert torch.equal(boxes, torch.ones(1, 4)) and type(boxes) is torch.Tensor
    assert masks.dtype == torch.uint8 and masks.shape == (1, 2, 3)


def test_policies_that_do_not_exist_are_named(data, tmp_path):
    with pytest.raises(ConfigError, match='policy must be one of stop, skip'):
        train(tmp_path, data, **{'default_hooks.non_finite_loss.policy': 'ignore'})
    with pytest.raises(ConfigError, match='corrupt_images must be one of raise, replace'):
        train(tmp_path, data, **{'train_cfg.corrupt_images': 'drop'})


# --- images


def spoil(data, split='train'):
    """Empty one image, put noise into another, cut a third short; return their names."""
    files = sorted((data / split).iterdir())[:3]
    files[0].write_bytes(b'')
    files[1].write_bytes(b'\xff\xd8\xff\xe0 broken \xff\xd9')
    files[2].write_bytes(files[2].read_bytes()[:-200])
    return [str(file) for file in files]


class SpoilHook(Hook):
    """Spoil images that the check before the training has found whole."""

    def __init__(self, data, names):
        self.data, self.names = data, names

    def before_train(self, runner):
        self.names += spoil(self.data)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_corrupt_image_is_named_in_one_sentence(data, tmp_path, workers):
    names = []
    spoiler = SpoilHook(data, names)
    with pytest.raises(DataError, match=r'^image \'.*corrupt_images=replace') as caught:
        train(tmp_path, data, '', [spoiler], **{'train_dataloader.num_workers': workers})
    assert any(str(caught.value).startswith(f"image '{name}'") for name in names)


def test_corrupt_images_can_be_replaced_and_are_summed_up(data, tmp_path):
    names = spoil(data)
    options = {'train_cfg.corrupt_images': 'replace', 'train_cfg.max_epochs': 2}
    seen = []

    class Watch(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.extend(sample.img_path for sample in data_batch['data_samples'])

    extra = 'train_dataloader.update(num_workers=2, persistent_workers=True)\n'
    runner, log = train(tmp_path, data, extra, [Watch()], **options)
    assert runner.iter == 8 and len(seen) == 32 and not set(seen) & set(names)
    summary = log[log.index('samples were replaced') :]
    assert all(name in summary for name in names) and 'because 3 images cannot be read' in log
    counts = runner.message_hub.get_info('evit_mm_place')['replaced']
    assert sum(counts.values()) >= 6  # once an epoch each, and when drawn as a replacement
    assert f'{sum(counts.values())} samples were replaced' in log


def test_a_corrupt_image_in_the_evaluation_is_named(data, tmp_path):
    names = spoil(data, 'val')
    with pytest.raises(DataError, match='cannot be decoded|cannot be read') as caught:
        train(tmp_path, data)
    assert Path(names[0]).name in str(caught.value) or Path(names[1]).name in str(caught.value)


@pytest.mark.parametrize('policy', ['raise', 'replace'])
@pytest.mark.parametrize(
    ('transform', 'error', 'match'),
    [
        (lambda: Path('/nowhere/table.csv').read_text(), FileNotFoundError, 'table.csv'),
        (lambda: cv2.resize(np.zeros((4, 4), np.uint8), (0, 0)), cv2.error, 'resize'),
    ],
)
def test_a_fault_of_a_transform_is_not_taken_for_an_image(data, policy, transform, error, match):
    class Opens:
        def __getitem__(self, index):
            transform()

        def get_data_info(self, index):
            return {'img_path': str(next((data / 'train').iterdir()))}

        def __len__(self):
            return 1

    with pytest.raises(error, match=match):
        GuardedDataset(Opens(), policy)[Seeded(0, 0)]


@pytest.mark.parametrize(
    ('own', 'opened', 'kind'),
    [
        ('http://a/b.jpg', None, DataError),
        ('broken.jpg', None, DataError),
        ('whole.jpg', 'broken.jpg', DataError),  # a mosaic
        ('whole.jpg', 'whole.jpg', OSError),
        ('whole.jpg', 'none.csv', OSError),
    ],
)
def test_an_error_of_the_system_is_an_images_where_an_image_is_broken(
    tmp_path, monkeypatch, own, opened, kind
):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('whole.jpg', np.zeros((8, 8, 3), np.uint8))
    Path('broken.jpg').write_bytes(b'no picture')

    class Fails:
        def __getitem__(self, index):
            raise OSError(5, 'cannot be had', opened)

        def get_data_info(self, index):
            return {'img_path': own}

    with pytest.raises(kind, match=f"^image '{own}' cannot.*cannot be had|^.Errno") as caught:
        GuardedDataset(Fails(), 'raise')._read(0)
    assert type(caught.value) is kind


def test_a_transform_of_the_users_that_cannot_read_a_file_is_named_with_its_reason(tmp_path):
    """A fault of a later step is none of the image."""
    np.save(tmp_path / 'whole.npy', np.zeros((4, 4, 5)))
    (tmp_path / 'broken.npy').write_bytes(b'no array')

    def later(results):
        raise ValueError(results['img'].shape)

    class LoadBands:
        def __call__(self, results):
            return {'img': np.load(results['img_path'])}

    class Bands:
        names, pipeline = ('whole.npy', 'broken.npy'), [LoadBands(), later]

        def __getitem__(self, index):
            results = self.get_data_info(index)
            for step in self.pipeline:
                results = step(results)

        def get_data_info(self, index):
            return {'img_path': str(tmp_path / self.names[index])}

    guarded = GuardedDataset(Bands(), 'raise')
    with pytest.raises(DataError, match=r"broken\.npy' cannot be read: .* by LoadBands \(\w+Error"):
        guarded._read(1)
    with pytest.raises(ValueError, match='4, 4, 5'):
        guarded._read(0)


class Numbered:
    """Its samples are their numbers; those below ``broken`` cannot be read."""

    def __init__(self, broken):
        self.broken, self.asked, self.pipeline = broken, [], 'own'

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.asked.append(index)
        if index < self.broken:
            raise AssertionError('failed to load image: x.jpg')
        return {'index': index}


def test_a_sample_is_replaced_by_its_seed_and_not_for_ever():
    guarded = GuardedDataset(Numbered(2), 'replace')
    assert guarded[Seeded(3, 5)] == {'index': 3, 'replaced_images': ''}
    for seed in range(20):
        found, asked = guarded[Seeded(1, seed)], []
        rng = np.random.RandomState(seed)
        while not asked or asked[-1] < 2:
            asked.append(rng.randint(4))
        assert found['index'] == asked[-1]
        lines = found['replaced_images'].splitlines()
        assert len(lines) == len(asked) and lines[0].startswith("image '1' cannot be read: it can")
    guarded = GuardedDataset(Numbered(4), 'replace')
    assert 'images in a row cannot be read. First: image' in str(guarded[Seeded(0, 0)])
    assert 10 <= len(guarded.asked) <= 12
    guarded = pickle.loads(pickle.dumps(GuardedDataset(Numbered(4), 'raise')))
    fault = guarded[Seeded(2, 0)]
    assert isinstance(fault, DataError) and guarded.asked == [2] and len(guarded) == 4
    guarded.pipeline = 'new'
    assert vars(guarded)['dataset'].pipeline == 'new'
    with pytest.raises(AssertionError):
        guarded[2]


def test_the_exact_loader_has_all_settings_of_the_loader():
    settings = {
        'num_workers': 1, 'pin_memory': True, 'timeout': 9, 'worker_init_fn': print,
        'multiprocessing_context': multiprocessing.get_context('spawn'),
        'generator': torch.Generator(), 'prefetch_factor': 3, 'persistent_workers': True,
    }  # fmt: skip
    sampler = BatchSampler(range(4), 3, True)
    exact = exact_loader(
        DataLoader(Numbered(0), batch_sampler=sampler, collate_fn=tuple, **settings), 1, 'raise'
    )
    assert {name: getattr(exact, name) for name in settings} == settings
    found = exact.batch_sampler
    assert (len(exact), found.batch_size, found.drop_last, list(found.sampler)) == (
        1, 3, True, [0, 1, 2, 3],
    )  # fmt: skip
    faults = [DataError('a'), DataError('b')]
    assert exact.collate_fn([1, 2]) == (1, 2) and exact.collate_fn([1, *faults]) is faults[0]


@pytest.mark.parametrize('workers', [0, 1])
def test_an_image_that_is_too_thin_to_resize_is_named_in_one_sentence(tmp_path, workers):
    cv2.imwrite(str(tmp_path / 'thin.png'), np.zeros((500, 1, 3), np.uint8))
    image = {'id': 1, 'file_name': 'thin.png', 'width': 1, 'height': 500}
    found = {'images': [image], 'annotations': [], 'categories': [{'id': 1, 'name': 'cell'}]}
    (tmp_path / 'all.json').write_text(json.dumps(found))
    steps = [{'type': 'LoadImageFromFile'}, {'type': 'Resize', 'scale': (64, 64)}]
    steps[1]['keep_ratio'] = True
    dataset = TolerantCocoDataset(
        ann_file=str(tmp_path / 'all.json'), data_prefix={'img': f'{tmp_path}/'}, pipeline=steps,
        metainfo={'classes': ('cell',)}, test_mode=True,
    )  # fmt: skip
    said = f"image '{tmp_path}/thin.png' has 1x500 pixels and is too thin to resize; replace it"
    with pytest.raises(DataError) as caught, named_faults():
        list(DataLoader(dataset, num_workers=workers))
    assert str(caught.value).startswith(said) and '\n' not in str(caught.value)
    assert str(GuardedDataset(dataset, 'raise')[Seeded(0, 0)]).startswith(said)  # in training


@pytest.mark.slow
def test_data_are_read_over_http(data, tmp_path):
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Handler, directory=str(data)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root, dataset = f'http://127.0.0.1:{server.server_port}', 'train_dataloader.dataset'
    options = {
        f'{dataset}.data_root': None,
        f'{dataset}.ann_file': f'{root}/annotations/instances_train.json',
        f'{dataset}.data_prefix.img': f'{root}/train/',
    }
    runner, _ = train(tmp_path, data, **options)
    server.shutdown()
    assert runner.iter == 4
    assert len({path for path in asked if path.startswith('/train/')}) == 16


# --- deaths


class KillWorkerHook(Hook):
    """Kill one of the loader's workers."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == 0:
            os.kill(runner.train_dataloader._iterator._workers[0].pid, signal.SIGKILL)


def train_under_a_killed_worker(data, folder):
    """Write into ``folder`` what the run says when one of its loader's workers is killed."""
    extra = 'train_dataloader.update(num_workers=2, persistent_workers=True, batch_size=1)\n'
    try:
        train(folder, data, extra, [KillWorkerHook()])
    except EvitError as error:
        (folder / 'said').write_text(str(error))


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_with_a_sentence(data, tmp_path):
    # in a process of its own: torch's handler of SIGCHLD may speak of the worker again, wherever
    # the process is when its next child ends
    process = multiprocessing.get_context('spawn').Process(
        target=train_under_a_killed_worker, args=(data, tmp_path)
    )
    process.start()
    process.join()
    said = (tmp_path / 'said').read_text()
    assert re.search(r'DataLoader worker .*(killed|exited).*num_workers', said, re.DOTALL)


@pytest.mark.parametrize(
    ('error', 'kind', 'match'),
    [
        (OSError(28, 'No space left on device', 'a.json'), EvitError, "'a.json' cannot be written"),
        (RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. '), EvitError, 'mem'),
        (RuntimeError('mat1 and mat2'), RuntimeError, '^mat1 and mat2$'),
        (FileNotFoundError(2, 'No such file', 'b.jpg'), FileNotFoundError, 'b.jpg'),
        (AssertionError('failed to load image: c.jpg'), DataError, "'c.jpg' cannot be decoded"),
        (OSError(errno.EDQUOT, 'Quota exceeded'), EvitError, r'^a file cannot be written \(Quota'),
        (cv2.error('(-215) !buf.empty() in imdecode_'), DataError, '^an image file is empty'),
        (cv2.error('(-215) in resize'), cv2.error, 'resize'),
        (AssertionError('3 boxes'), AssertionError, '^3 boxes$'),
    ],
)
def test_only_what_is_understood_is_translated(error, kind, match):
    with pytest.raises(kind, match=match) as caught, named_faults():
        raise error
    assert type(caught.value) is kind
