"""Checkpoints: the old one goes after the new one, and several processes save one state."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.multiprocessing
from mmengine.fileio import get_file_backend
from mmengine.optim import OptimWrapper
from torch import nn

from evit_mm.runner.checkpoints import ATOMIC, SafeCheckpointHook


def test_an_old_file_goes_only_after_the_next_is_written(tmp_path):
    old, new, outdated = tmp_path / 'old', tmp_path / 'new', []

    def backend():  # mmengine makes one for each call
        return get_file_backend(backend_args={'backend': ATOMIC, 'outdated': outdated})

    old.write_bytes(b'1')
    backend().remove(old)
    with pytest.raises(FileExistsError):
        backend().put(b'2', old / 'under a file')
    assert old.exists()
    backend().put(b'2', new)
    assert new.read_bytes() == b'2' and not old.exists() and not outdated
    backend().remove(new)
    backend().remove(tmp_path / 'gone')
    backend().put(b'3', new)  # written again, so it is not outdated
    backend().put(b'4', old)
    assert new.read_bytes() == b'3' and old.read_bytes() == b'4'


def a_runner(folder, count=1, value=1.0, **others):
    """A runner in the midst of an accumulation over three iterations; all tensors are ``value``."""
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1), accumulative_counts=3)
    wrapper.initialize_count_status(model, count, 100)
    model[1].running_mean.fill_(value)
    model[0].weight.grad = torch.full((1, 1), value)
    return SimpleNamespace(
        model=model, optim_wrapper=wrapper, work_dir=str(folder), logger=Mock(handlers=[]),
        message_hub=Mock(runtime_info={}), _resume=False, _load_from='a.pth', **others,
    )  # fmt: skip


def test_gradients_are_saved_between_steps_and_only_a_resumed_run_gets_them(tmp_path):
    def saved(count, **content):
        SafeCheckpointHook().before_save_checkpoint(a_runner(tmp_path, count, 2.0), content)
        return content.get('gradients')

    assert saved(1, optimizer={}) == {'0.weight': torch.full((1, 1), 2.0)}
    assert saved(3, optimizer={}) is None  # the step has used them
    assert saved(1) is None  # nothing can resume from it
    for resume in (False, True):
        hook, runner = SafeCheckpointHook(), a_runner(tmp_path)
        runner._resume = resume
        content = {'gradients': {'1.bias': torch.full((1,), 7.0)}, 'state_dict': {}}
        hook.after_load_checkpoint(runner, content)
        hook.before_train(runner)
        assert list(content) == ['state_dict']
        assert runner.model[1].bias.grad == (torch.full((1,), 7.0) if resume else None)


@pytest.mark.parametrize(
    ('given', 'work_dir', 'name'),
    [
        (None, 'work', 'AtomicBackend'),
        ({'backend': 'local'}, 'work', 'LocalBackend'),
        (None, 'http://a/b', 'HTTPBackend'),
    ],
)
def test_only_the_local_disk_is_written_atomically_unless_asked(given, work_dir, name):
    hook = SafeCheckpointHook(backend_args=given)
    hook.before_train(a_runner(work_dir))
    assert type(hook.file_backend).__name__ == name


class Noted(SafeCheckpointHook):
    """Note the buffer and the gradient at each save, instead of a file."""

    def _save_checkpoint(self, runner, metrics=None):
        mean, gradient = runner.model[1].running_mean.item(), runner.model[0].weight.grad.item()
        self.noted.append([mean, gradient])

    _save_best_checkpoint = _save_checkpoint


def save_in_turns(rank, folder):
    """One of two processes, whose tensors are 1 and 2: write down what each call leaves."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    found = {}

    def call(name, method, count=1, epoch=0, it=0, **options):
        hook = Noted(**options)
        hook.noted = []
        runner = a_runner(
            folder, count, rank + 1.0, epoch=epoch, iter=it, max_epochs=3, max_iters=30
        )
        arguments = {'after_train_iter': (0,), 'after_val_epoch': ({'a': 1.0},)}.get(method, ())
        getattr(hook, method)(runner, *arguments)
        after = [runner.model[1].running_mean.item(), runner.model[0].weight.grad.item()]
        found[name] = [hook.noted, after]

    for epoch in range(3):
        call(f'epoch {epoch}', 'after_train_epoch', epoch=epoch, interval=2)
    for it in (0, 1, 29):
        call(f'iteration {it}', 'after_train_iter', it=it, interval=2, by_epoch=False)
    call('not the last', 'after_train_epoch', epoch=2, interval=2, save_last=False)
    call('too early', 'after_train_epoch', epoch=1, interval=2, save_begin=3)
    call('by epoch', 'after_train_iter', it=1, interval=1)
    call('by iteration', 'after_train_epoch', epoch=1, interval=1, by_epoch=False)
    call('stepped', 'after_train_epoch', count=3, epoch=1, interval=2)
    call('before an evaluation', 'before_val_epoch')
    call('the best', 'after_val_epoch')
    (folder / f'{rank}.json').write_text(json.dumps(found))
    torch.distributed.barrier()  # a process that ends breaks the other's connection
    torch.distributed.destroy_process_group()


def test_processes_agree_before_each_save_and_are_left_alone_otherwise(tmp_path):
    torch.multiprocessing.spawn(save_in_turns, (tmp_path,), nprocs=2)
    for rank in (0, 1):
        own, agreed = [rank + 1.0] * 2, [1.0, 1.5]  # the first's buffer, the mean gradient
        alone, together = [[], own], [[agreed], agreed]
        stepped = [1.0, own[1]]
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == {
            'epoch 0': alone, 'epoch 1': together, 'epoch 2': together,
            'iteration 0': alone, 'iteration 1': together, 'iteration 29': together,
            'not the last': alone, 'too early': alone, 'by epoch': alone, 'by iteration': alone,
            'stepped': [[stepped], stepped],
            'before an evaluation': [[], stepped],
            'the best': together,
        }  # fmt: skip
