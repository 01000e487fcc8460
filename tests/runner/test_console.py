"""The short lines of the console: when they come and what stands in them."""

import logging
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from mmengine.logging import MessageHub

from evit_mm.runner.console import ConsoleLoggerHook

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
    runner.log_processor.by_epoch = False
    assert shown(runner, 'after_val_epoch', capsys, 1) == ['evaluated: no result']
