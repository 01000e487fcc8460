"""What ``docs/checkpoints.md`` tells a user to do is done here, with stand-ins of the files."""

import re
import runpy
import shlex
import sys

import torch

from evit_mm.checkpoint import names, read_checkpoint, tensors_of
from evit_mm.checkpoint.conversion import TARGETS
from evit_mm.models import EfficientViT
from tests.conftest import ROOT
from tests.docs.test_pages import blocks
from tests.standins import detector_file, imagenet_file

PAGE = ROOT / 'docs' / 'checkpoints.md'


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_the_pages_commands_and_snippets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    imagenet = imagenet_file('m4')
    torch.save(imagenet, 'efficientvit_m4.pth')
    detector = detector_file('retinanet')
    torch.save(detector, 'retinanet_efficientvit_m4_fpn_1x_coco.pth')
    (tmp_path / 'work_dirs' / 'my_cells').mkdir(parents=True)
    classes = {'dataset_meta': {'classes': ('a', 'b')}}
    own = {k: v for k, v in detector['state_dict'].items() if k[-4:] != 'idxs'}
    torch.save({'state_dict': own, 'meta': classes}, 'work_dirs/my_cells/epoch_30.pth')

    commands = [c for block in blocks(PAGE, 'bash') for c in block.strip().splitlines()]
    assert len(commands) == 5
    for command in commands:
        program, script, *arguments = shlex.split(command)
        assert program == 'python'
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'argv', [script, *arguments])
            runpy.run_path(str(ROOT / script), run_name='__main__')
        assert capsys.readouterr().out.splitlines()[1].startswith('renamed ')
    assert same(tensors_of(read_checkpoint('authors_m4.pth')), imagenet['model'])
    assert same(tensors_of(read_checkpoint('retinanet_m4.pth')), own)
    assert same(tensors_of(read_checkpoint('my_cells.safetensors')), own)
    for name in ('efficientvit_m4.safetensors', 'timm_m4.safetensors', 'authors_m4.pth'):
        init_cfg = {'type': 'Pretrained', 'checkpoint': name}
        EfficientViT('m4', init_cfg=init_cfg).init_weights()

    config, functions = blocks(PAGE, 'python')
    scope = {}
    exec(config, scope)
    assert scope['backbone'].pop('type') == 'EfficientViT'
    assert EfficientViT(**scope['backbone']).init_cfg['checkpoint'].startswith('timm/')
    exec(functions, scope)
    assert scope['converted'].target == 'timm'
    assert 'patch_embed.0.c.weight -> patch_embed.conv1.conv.weight' in capsys.readouterr().out
    assert same(
        tensors_of(read_checkpoint('timm_m4.bin')),
        tensors_of(read_checkpoint('timm_m4.safetensors')),
    )


def test_the_page_knows_every_kind_and_target():
    page = PAGE.read_text()
    for family in names.FAMILIES.values():
        assert f'| `{family.signature}` |' in page
    assert re.findall(r'^\| `(\w+)`', page, re.MULTILINE) == list(TARGETS)
