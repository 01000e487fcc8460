"""Recognise by its content what kind of file was given as a checkpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO

CHECKPOINT_KINDS = ('zip', 'legacy', 'safetensors')
HEAD = 1 << 14  # bytes that are read
EXPORTED = (
    'use it under its name {suffix} in tools/test.py, predict.py and demo.py; the other tools need '
    'the checkpoint that was exported'
)
SUFFIXES = ('.pth', '.safetensors')
GIVE = 'give a .pth or .safetensors file'
DOWNLOAD = 'download the checkpoint again'
IMAGE, VIDEO = 'an image', 'a video'
# kinds of files that are not checkpoints, and what to do
ADVICE = {
    'an empty file': DOWNLOAD,
    'a web page': DOWNLOAD,
    'a Git LFS pointer': 'run git lfs pull',
    'a compressed file': 'extract the checkpoint from it',
    'a tar archive': 'extract the checkpoint from it, or save it again with torch.save',
    'a Python pickle not written by torch.save': 'save its state dict with torch.save',
    'an ONNX model': EXPORTED.format(suffix='*.onnx'),
    'an OpenVINO model': EXPORTED.format(suffix='*.xml'),
    'a TorchScript program': "save the model's state dict with torch.save",
    'a NumPy archive': 'save its arrays as tensors with torch.save',
    'another zip archive': 'extract the checkpoint from it',
    'a text file': f'{GIVE}; on a command line, the config comes before it',
    'a text file with the path of a checkpoint': 'give the file that it names',
}
BEGINNINGS = {
    b'PK\x03\x04': 'zip',
    b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19': 'legacy',
    b'\x80': 'a Python pickle not written by torch.save',
    b'version https://git-lfs': 'a Git LFS pointer',
    b'\x1f\x8b': 'a compressed file',
    b'BZh': 'a compressed file',
    b'\xfd7zXZ\x00': 'a compressed file',
    b'7z\xbc\xaf\x27\x1c': 'a compressed file',
    b'\x28\xb5\x2f\xfd': 'a compressed file',
    b'\xff\xd8\xff': IMAGE,
    b'\x89PNG': IMAGE,
    b'GIF8': IMAGE,
    b'BM': IMAGE,
    b'II*\x00': IMAGE,
    b'MM\x00*': IMAGE,
    b'\x1aE\xdf\xa3': VIDEO,
    b'\x93NUMPY': 'a NumPy array',
    b'\x89HDF': 'an HDF5 file, for example of Keras',
    b'ftrt': 'a TensorRT engine',
}
# an ONNX model is a protobuf message that begins with its version; these are the next fields
ONNX = re.compile(rb'\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]', re.DOTALL)
TAR_MAGIC = slice(257, 262)


def kind_of(file: IO[bytes]) -> str:
    """Return one of :data:`CHECKPOINT_KINDS` from the first bytes, or a phrase for messages."""
    head = file.read(HEAD)
    if text := _text(head):
        return _kind_of_text(text)
    if head[8:9] == b'{':  # the JSON header of safetensors follows its length in eight bytes
        return 'safetensors'
    if head[:4] == b'RIFF' or head[4:8] == b'ftyp':
        return IMAGE if head[8:12] in (b'WEBP', b'avif', b'heic', b'mif1') else VIDEO
    if ONNX.match(head):
        return 'an ONNX model'
    if head[4:8] == b'TFL3':
        return 'a TensorFlow Lite model'
    if head[TAR_MAGIC] == b'ustar':
        return 'a tar archive'
    for beginning, kind in BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    return 'a file of an unknown kind' if head else 'an empty file'


def kind_of_archive(members: Iterable[str]) -> str:
    """Return ``'zip'`` for the member names of a checkpoint, or a phrase for messages."""
    names = {member.rpartition('/')[2] for member in members}
    if 'constants.pkl' in names:
        return 'a TorchScript program'
    if 'data.pkl' in names:
        return 'zip'
    if names and all(name.endswith('.npy') for name in names):
        return 'a NumPy archive'
    return 'another zip archive'


def refusal(path: Path, kind: str) -> str:
    """Return the sentence about a file that is not a checkpoint."""
    return f"'{path}' is {kind}, not a checkpoint; {ADVICE.get(kind, GIVE)}"


def refusal_of_missing(path: Path) -> str:
    """Return the sentence about a path that is not a file."""
    if os.path.isdir(path):
        own = sorted(file.name for end in SUFFIXES for file in path.glob(f'*{end}'))
        advice = f"give one of its files, for example '{own[0]}'" if own else GIVE
        return f"checkpoint '{path}' is a folder; {advice}"
    fault = 'is a pipe or device' if os.path.exists(path) else 'does not exist'
    return f"checkpoint '{path}' {fault}; {GIVE}, an http(s) URL, timm://NAME or hf-hub:OWNER/NAME"


def _text(head: bytes) -> str:
    """Return the bytes as text, or an empty string if they are not text in UTF-8."""
    text = head.decode('utf-8-sig', errors='replace').rstrip('\ufffd')  # the cut may split one
    plain = '\ufffd' not in text and all(c.isprintable() or c.isspace() for c in text)
    return text if plain else ''


def _kind_of_text(text: str) -> str:
    start = text.lstrip().lower()
    if start.startswith('version https://git-lfs'):
        return 'a Git LFS pointer'
    if start.startswith('<'):
        if '<net ' in start:
            return 'an OpenVINO model'
        return 'a web page' if re.match('<(!doctype )?html', start) else 'an XML file'
    if re.match(r'{\s*["}]|\[\s*[\[{"\d\]-]', start):
        return 'a JSON file'
    if re.fullmatch(r'\S[^\n]*\.(pth|safetensors)\s*', text):
        return 'a text file with the path of a checkpoint'
    return 'a text file'
