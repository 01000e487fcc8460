"""Each hostile file is refused with one clear error, and nothing in it runs."""

import gzip
import pickle
import resource
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from evit_mm.checkpoint import reading, tensors_of
from evit_mm.checkpoint.allowed_types import TORCH_HAS_SAFE_TYPES
from evit_mm.checkpoint.conversion import convert_file
from evit_mm.errors import CheckpointError
from tests.conftest import ROOT
from tests.hostile import BOMB, go_off, good_bytes, good_state, hostile_files, loads, trace

MEMORY_MB = 500  # that a hostile file may cost at most; the largest of the corpus claims 10**15


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    return list(hostile_files(tmp_path_factory.mktemp('hostile')))


@pytest.fixture(params=['of torch', 'of evit_mm'])
def unpickler(request, monkeypatch):
    """Read with torch's own unpickler where it will do, and with the one before torch 2.6."""
    if request.param == 'of evit_mm':
        monkeypatch.setattr(reading, 'TORCH_HAS_SAFE_TYPES', False)
    elif not TORCH_HAS_SAFE_TYPES:
        pytest.skip('torch before 2.6 has no list of safe types')


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_every_file_is_refused_in_one_sentence_and_nothing_runs(corpus, unpickler):
    """torch's own message advises to allow the type; only lists of entries have more lines."""
    assert len(corpus) >= 140 and len({name for name, _ in corpus}) == len(corpus)
    before, failed = peak_mb(), {}
    for name, path in corpus:
        error = loads(path)
        text = str(error)
        if error is None or str(path) not in text:
            failed[name] = text
        assert '\n' not in text or 'does not fit EfficientViT' in text, name
        assert len(text.splitlines()[0]) < 600, name
        assert 'add_safe_globals' not in text and 'weights_only' not in text, name
        assert not trace(path).exists(), name
    assert not failed
    assert peak_mb() - before < MEMORY_MB


def test_none_is_converted(corpus, tmp_path):
    """Those whose tensors alone are wrong may be: to say so is up to whoever loads them."""
    for name, path in corpus:
        if not path.stem.startswith(('wrong_tensors', 'odd_contents')):
            with pytest.raises(CheckpointError):
                convert_file(path, tmp_path / 'out.pth')
        assert not trace(path).exists(), name


def test_the_bombs_are_bombs(corpus):
    """The control: loaded without protection, each of them goes off."""
    bombs = [(name, path) for name, path in corpus if name.startswith(BOMB)]
    assert len(bombs) >= 40
    for name, path in bombs:
        assert not trace(path).exists(), name
        try:
            go_off(path)
        except Exception as error:  # what is left of some is no checkpoint
            assert not isinstance(error, CheckpointError), name
        assert trace(path).is_dir(), name


@pytest.mark.parametrize('legacy', [False, True])
def test_the_files_that_they_were_made_from_load(legacy, tmp_path, unpickler):
    """The other control: the corpus is refused for what was done to it."""
    path = tmp_path / 'good.pth'
    path.write_bytes(good_bytes(_use_new_zipfile_serialization=not legacy))
    assert loads(path) is None
    state = good_state()
    for dtype in (torch.float16, torch.bfloat16):
        half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        torch.save(half, path)
        assert loads(path) is None


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (b'', 'an empty file, not a checkpoint; download the checkpoint again'),
        (b'text', 'a text file, not a checkpoint; give a .pth or .safetensors file'),
        (b'\x01\x02\x03 binary \x00', 'a file of an unknown kind, not a checkpoint; give a .pth'),
        (pickle.dumps({'a': 1}, 4), 'a Python pickle not written by torch.save, not a checkpoint'),
        (
            gzip.compress(b'weights', mtime=0),
            'a compressed file, not a checkpoint; extract the checkpoint',
        ),
        (b'<!doctype html><html>', 'a web page, not a checkpoint; download the checkpoint again'),
        (b'<?xml version="1.0"?><Error/>', 'an XML file, not a checkpoint; give a .pth'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:4d\n',
         'a Git LFS pointer, not a checkpoint; run git lfs pull'),
        # from its ninth byte on, it begins as the header of safetensors does
        (b'{"info":{"year": 2026}, "images": []}', 'a JSON file, not a checkpoint'),
        (b'model: m4\n', 'a text file, not a checkpoint'),
        (b'work_dirs/run/epoch_12.pth', 'a text file with the path of a checkpoint, not a '
         'checkpoint; give the file that it names'),
        (b'\x08\x08\x12\x07pytorch\x1a\x052.5.1:', 'an ONNX model, not a checkpoint; use it'),
        (b'\x1c\x00\x00\x00TFL3', 'a TensorFlow Lite model, not a checkpoint'),
        (b'RIFF\x00\x01\x00\x00WEBPVP8 ', 'an image, not a checkpoint'),
        (b'\x00\x00\x00\x20ftypisom', 'a video, not a checkpoint'),
    ],
)  # fmt: skip
def test_what_is_taken_for_a_checkpoint_by_mistake_is_named(tmp_path, content, said):
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        reading.read_file(tmp_path / 'a.pth')
    assert f"a.pth' is {said}" in str(caught.value)


def test_files_of_other_programs_are_named(tmp_path, real_data):
    """Each is written by its own program, not by hand."""
    image = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    images = [tmp_path / f'a.{end}' for end in ('jpg', 'png', 'bmp', 'gif', 'tiff', 'webp')]
    for path in images:
        image.save(path)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / 'program.pt')
    np.savez(tmp_path / 'a.npz', a=np.ones(3))
    np.save(tmp_path / 'a.npy', np.ones(3))
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('epoch_1.pth', b'')
    with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
        archive.add(images[0])
    expected = {
        **dict.fromkeys(images, 'an image'),
        tmp_path / 'program.pt': 'a TorchScript program',
        tmp_path / 'a.npz': 'a NumPy archive',
        tmp_path / 'a.npy': 'a NumPy array',
        tmp_path / 'a.zip': 'another zip archive',
        tmp_path / 'a.tar': 'a tar archive',
        ROOT / 'pyproject.toml': 'a text file',
        real_data('bccd') / 'annotations' / 'instances_val.json': 'a JSON file',
        **dict.fromkeys(sorted((ROOT / 'configs').rglob('*.py')), 'a text file'),
    }
    for path, kind in expected.items():
        with pytest.raises(CheckpointError) as caught:
            reading.read_file(path)
        assert str(caught.value).startswith(f"'{path}' is {kind}, not a checkpoint; "), path


def test_a_folder_offers_its_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match=r'is a folder; give a \.pth or \.safetensors file$'):
        reading.read_file(tmp_path)
    for name in ('epoch_1.pth', 'best_ap_epoch_1.pth', 'config.py'):
        (tmp_path / name).touch()
    with pytest.raises(
        CheckpointError, match="one of its files, for example 'best_ap_epoch_1.pth'"
    ):
        reading.read_file(tmp_path)


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ValueError('\n one\ntwo'), 'one'),
        (ValueError(400 * 'x'), 300 * 'x'),
        (ValueError(), 'ValueError()'),
    ],
)
def test_messages_quote_the_first_line_of_an_error(error, line):
    assert reading.first_line(error) == line


def test_a_pipe_does_not_hang(tmp_path):
    """In a process of its own, which can be ended."""
    program = (
        'import os, sys\nfrom evit_mm.checkpoint import read_checkpoint\n'
        'os.mkfifo(sys.argv[1])\nread_checkpoint(sys.argv[1])\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program, str(tmp_path / 'pipe.pth')],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 1 and 'is a pipe or device; give' in done.stderr


def test_tensors_are_dense_and_no_larger_than_what_is_stored():
    part = torch.arange(6.0).view(2, 3)[:, 1:]  # of a larger storage
    assert torch.equal(tensors_of({'w': part})['w'], part)
    for odd in (torch.ones(1).expand(4), torch.ones(3).to_sparse(), torch.ones(2, device='meta')):
        with pytest.raises(CheckpointError, match="'w' is not a plain tensor"):
            tensors_of({'w': odd})
