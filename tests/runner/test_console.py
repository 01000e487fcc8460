"""The short lines of the console: when they come and what stands in them."""

import logging
import sys
import warnings
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from mmengine.logging import MessageHub

from evit_mm.runner.console import ConsoleLoggerHook, prints_to_file, warnings_to_file

LEFT = 'left 1:01:02'


@pytest.fixture
def runner(tmp_path):
    logger = logging.Logger('x')
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.handlers[0].setLevel(logging.INFO)
    hub = MessageHub(str(tmp_path))
    for loss in (9.0, 0.3, 0.2):
        hub.update_scalar('train/loss', loss)
    for rate in (0.5, 0.001):
        hub.update_scalar('train/lr', rate)
    hub.update_info('eta', 3661.6)
    processor = Mock(by_epoch=True, window_size=2)
    processor.get_log_after_iter.return_value = processor.get_log_after_epoch.return_value = (
        {},
        'for the file',
    )
    return SimpleNamespace(
        logger=logger, message_hub=hub, log_processor=processor, visualizer=Mock(), epoch=8, iter=3,
        max_epochs=12, max_iters=100, train_dataloader=range(10), val_dataloader=range(20),
        test_dataloader=range(7), experiment_name='x', _train_loop=None,
    )  # fmt: skip


def shown(runner, method, capsys, batches=10, **metrics):
    hook = ConsoleLoggerHook(interval=4)
    hook.json_log_path = 'x.json'
    for index in range(batches):
        arguments = {'metrics': metrics} if batches == 1 else {'batch_idx': index}
        getattr(hook, method)(runner, **arguments)
    return capsys.readouterr().out.splitlines()


def test_lines_come_at_the_interval_and_at_the_end_of_an_epoch(runner, capsys):
    figures = f'loss 0.2500  lr 1.00e-03  {LEFT}'
    assert shown(runner, 'after_train_iter', capsys) == [
        f'epoch  9/12  iteration {place}/10  {figures}' for place in (' 4', ' 8', '10')
    ]
    runner.log_processor.by_epoch = False
    best = {'metric': 'coco/bbox_mAP_50', 'value': 0.1234, 'epoch': 1}
    runner.message_hub.update_info('evit_mm_best', best)
    runner.message_hub.log_scalars.pop('train/loss')  # of a skipped batch
    line = f'iteration   4/100  lr 1.00e-03  AP_50 0.123  {LEFT}'
    assert shown(runner, 'after_train_iter', capsys) == [line] * 3
    runner.logger.handlers[0].setLevel(logging.WARNING)
    assert shown(runner, 'after_train_iter', capsys) == []


def test_evaluations_tell_how_far_they_are_and_their_figures(runner, capsys):
    places = (' 4', ' 8', '12', '16', '20')
    assert shown(runner, 'after_val_iter', capsys, 20) == [
        f'evaluating  {place}/20  {LEFT}' for place in places
    ]
    assert shown(runner, 'after_test_iter', capsys, 7) == [f'evaluating  4/7  {LEFT}']
    said = shown(runner, 'after_val_epoch', capsys, 1, a=0.25, number=3)
    assert said == ['epoch  8/12  evaluated: a: 0.2500  number: 3']
    six = {f'coco/bbox_mAP{part}': 0.1 for part in ('', '_50', '_75', '_s', '_m')}
    said = shown(runner, 'after_val_epoch', capsys, 1, **six, a=0.25)  # one is missing
    assert said[0].count(': 0.1000') == 5
    said = shown(runner, 'after_val_epoch', capsys, 1, **six, **{'coco/bbox_mAP_l': -1.0}, a=0.25)
    assert said == [
        'epoch  8/12  evaluated: coco/bbox_mAP_copypaste: 0.100 0.100 0.100 0.100 0.100 -1.000  '
        'a: 0.2500'
    ]
    runner.log_processor.by_epoch = False
    assert shown(runner, 'after_val_epoch', capsys, 1) == ['evaluated: no result']


def test_the_console_speaks_again_after_an_evaluation_and_after_its_failure(capsys, runner):
    hook = ConsoleLoggerHook(interval=4)
    runner.logger.handlers = [logging.StreamHandler(sys.stdout)]
    runner.logger.handlers[0].setLevel(logging.INFO)
    for end in (lambda: hook.after_val_epoch(runner, {}), lambda: hook.on_exit(runner)):
        for index in range(20):
            runner.logger.info('seen')
            hook.after_val_iter(runner, index)
        runner.logger.info('a table')
        end()
        runner.logger.info('seen')
        said = capsys.readouterr().out
        assert said.count('seen') == 21 and 'a table' not in said


def test_what_libraries_print_and_warn_is_in_the_file_only(capsys, runner, tmp_path):
    file = logging.FileHandler(tmp_path / 'log')
    runner.logger.addHandler(file)
    quiet = prints_to_file(runner.logger), warnings_to_file(runner.logger)
    with pytest.warns(UserWarning) as own, quiet[0], quiet[1]:
        sys.stdout.write('loading annotations')
        warnings.warn_explicit('theirs', UserWarning, '/a/mmdet/x.py', 3)
        warnings.warn_explicit('mine', UserWarning, '/a/mine/x.py', 3)
    text = (tmp_path / 'log').read_text()
    assert 'loading annotations' in text and '/a/mmdet/x.py: UserWarning: theirs' in text
    assert [str(warning.message) for warning in own] == ['mine'] and 'mine' not in text
    assert capsys.readouterr().out == ''
    with pytest.raises(KeyError), prints_to_file(runner.logger):
        sys.stdout.write('before the error')
        raise KeyError
    assert 'before the error' in (tmp_path / 'log').read_text()
