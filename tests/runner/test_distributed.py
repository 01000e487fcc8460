"""Several processes take the steps of one, on the CPU over gloo, and none survives another."""

import pickle

import pytest

from evit_mm.data import make_shapes
from tests.kills import start_all
from tests.recording import read_losses
from tests.trainings import launch, succeeded, write_config

# flips included: an image is augmented alike on any number of processes
EXTRA = """
model['backbone']['norm_eval'] = True
train_dataloader['batch_size'] = {batch_size}
train_cfg = dict(max_epochs=1, val_interval=1)
custom_hooks = [dict(type='RecordLossHook', path={record!r})]
"""
FATAL = """
train_dataloader['batch_size'] = 4
custom_hooks = [dict(type='FatalHook', rank=1, how={how!r})]
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """84 images, of which the last batch of eight has four, and nine to evaluate."""
    folder = tmp_path_factory.mktemp('data') / 'set'
    return make_shapes(folder, 84, 9, size=(96, 96), quiet=True)


@pytest.fixture(scope='module')
def alone(data, tmp_path_factory):
    """The losses, checkpoint and evaluation of a single process."""
    return run(tmp_path_factory.mktemp('alone'), data, 1)


def run(folder, data, processes, checkpoint=None):
    """Train with batches of eight in all, and evaluate a checkpoint; its own without one."""
    record, results = folder / 'losses.jsonl', folder / 'results.pkl'
    config = write_config(folder, data, EXTRA.format(batch_size=8 // processes, record=str(record)))
    common = ['--work-dir', folder, '--device', 'cpu']
    succeeded(launch('train', [config, *common, '--seed', 3], processes))
    checkpoint = checkpoint or folder / 'epoch_1.pth'
    options = ['--cfg-options', 'model.test_cfg.score_thr=0.0']
    log = succeeded(
        launch('test', [config, checkpoint, *common, '--out', results, *options], processes)
    )
    figures = [line.split('=')[-1] for line in log.splitlines() if 'Average' in line]
    images = [prediction['img_id'] for prediction in pickle.loads(results.read_bytes())]
    return read_losses(record), checkpoint, figures, images


@pytest.mark.slow
@pytest.mark.parametrize('processes', [2, 4])
def test_several_processes_equal_one(alone, data, tmp_path, processes):
    losses, checkpoint, figures, images = alone
    found, _, found_figures, found_images = run(tmp_path, data, processes, checkpoint)
    assert sorted(losses) == sorted(found) == list(range(11))
    for iteration, loss in losses.items():
        assert found[iteration] == pytest.approx(loss, rel=1e-4), iteration
    # nine images on two or four processes: those that fill up must not count
    assert sorted(found_images) == sorted(images) == list(range(1, 10))
    assert len(figures) == 12 and found_figures == figures


@pytest.mark.slow
@pytest.mark.parametrize(
    ('how', 'said'),
    [
        ('kill', ['Signal 9 (SIGKILL)', 'rank      : 1']),
        ('raise', ["error: 'x.jpg' is what rank 1 stumbled over", 'rank      : 1']),
    ],
)
def test_a_process_that_dies_or_raises_ends_all_with_its_own_message(data, tmp_path, how, said):
    """A hang would last half an hour, gloo's patience; ``launch`` has less."""
    config = write_config(tmp_path, data, FATAL.format(how=how))
    done = launch('train', [config, '--work-dir', tmp_path, '--device', 'cpu'], 2)
    assert done.returncode != 0
    for text in said:
        assert text in done.stderr, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_agree_on_what_is_skipped_and_replaced(tmp_path):
    data = make_shapes(tmp_path / 'set', 16, 4, size=(96, 96), quiet=True)
    broken = sorted((data / 'train').iterdir())[5]
    broken.write_bytes(b'')
    extra = "train_cfg.update(max_epochs=1, corrupt_images='replace')\n"
    extra += "default_hooks['non_finite_loss'] = dict(policy='skip')\n"
    config = write_config(tmp_path, data, FATAL.format(how='nan') + extra)
    started = start_all(config, tmp_path, 3, None, 2)
    for process in started:
        process.join(300)
    log = (tmp_path / 'console_0.log').read_text()
    assert [process.exitcode for process in started] == [0, 0], log[-3000:]
    assert [p.name for p in (tmp_path / 'non_finite').iterdir()] == ['iter_2_rank_1.pth']
    assert (
        'the loss of another process became NaN or infinite in iteration 2; the batch is skip'
        in log
    )
    assert '1 of 2 batches were skipped' in log
    # whichever of the two had it, the first one says so
    assert 'samples were replaced because 1 images cannot be read' in log and str(broken) in log
