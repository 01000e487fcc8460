"""Downloads from a server on this machine that does everything that servers do."""

import errno
import hashlib
import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from evit_mm.checkpoint import download, read_checkpoint
from evit_mm.errors import CheckpointError
from evit_mm.models import EfficientViT

from .conftest import ROOT, TINY, randomise

PAGE = b'<!doctype html><html><title>Sign in</title></html>'


def weights(seed=0):
    torch.manual_seed(seed)
    buffer = io.BytesIO()
    torch.save({'model': randomise(EfficientViT(TINY)).state_dict(), 'seed': seed}, buffer)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's plan says, then as it should."""

    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        with server.guard:
            server.asked.append(dict(self.headers))
            act = server.plan.pop(0) if server.plan else server.usual
        if isinstance(act, int):
            self.send_error(act)
            return
        body = PAGE if act == 'page' else server.content
        start, status = 0, 200
        if 'Range' in self.headers and self.headers['If-Range'] == server.tag:
            start, status = int(self.headers['Range'][6:-1]), 206
        self.send_response(status)
        if status == 206:
            told = start + (act == 'other part')
            self.send_header('Content-Range', f'bytes {told}-{len(body) - 1}/{len(body)}')
        if server.tag:
            self.send_header('ETag', server.tag)
        part = body[start:]
        if act != 'no length':
            self.send_header('Content-Length', str(len(part)))
        self.send_header('Connection', 'close')
        self.close_connection = True
        self.end_headers()
        if act == 'cut':
            part = part[: len(part) // 2]
        if act == 'silent':
            self.wfile.write(part[:1000])
            self.wfile.flush()
            server.end.wait(5)
            return
        if act == 'slow':
            step = len(part) // 20 + 1
            for at in range(0, len(part), step):
                self.wfile.write(part[at : at + step])
                self.wfile.flush()
                time.sleep(server.pause)
            return
        self.wfile.write(part)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that was killed is no news."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(download, 'PAUSE_SECONDS', 0)
    monkeypatch.setenv('no_proxy', '*')
    found = Server(('127.0.0.1', 0), Handler)
    found.content, found.tag, found.plan, found.usual = weights(), '"1"', [], 'whole'
    found.asked, found.guard, found.pause = [], threading.Lock(), 0.01
    found.end = threading.Event()
    found.url = f'http://127.0.0.1:{found.server_port}/release/tiny.pth?raw=1'
    found.folder = tmp_path / 'hub' / 'checkpoints'
    thread = threading.Thread(target=found.serve_forever, kwargs={'poll_interval': 0.02})
    thread.start()
    yield found
    found.end.set()
    found.shutdown()
    thread.join()
    found.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_url_is_fetched_once_and_its_digest_is_kept(server):
    model = EfficientViT(TINY, init_cfg={'type': 'Pretrained', 'checkpoint': server.url})
    model.init_weights()
    assert read_checkpoint(server.url)['seed'] == 0
    assert len(server.asked) == 1
    path = server.folder / 'tiny.pth'
    assert path.read_bytes() == server.content
    assert names(server.folder) == ['tiny.pth', 'tiny.pth.lock', 'tiny.pth.sha256']
    digest = hashlib.sha256(server.content).hexdigest()
    assert (server.folder / 'tiny.pth.sha256').read_text() == f'{digest}  tiny.pth\n'


def test_progress_is_shown_on_a_terminal_alone(server, capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    download.fetch(server.url)
    size = f'{len(server.content) / 1000:.1f}'
    assert f'{size}/{size} kB' in capsys.readouterr().err
    monkeypatch.delenv('FORCE_COLOR')
    download.fetch(server.url.replace('tiny', 'other'))
    assert 'kB' not in capsys.readouterr().err


def test_an_exchanged_file_is_noticed(server):
    path = download.fetch(server.url)
    path.write_bytes(weights(1))
    with pytest.raises(CheckpointError, match=r"tiny\.pth' has the SHA-256 .* was expected"):
        read_checkpoint(server.url)
    path.unlink()
    (server.folder / 'tiny.pth.sha256').unlink()
    assert read_checkpoint(server.url)['seed'] == 0  # as the message says


def test_a_file_that_was_put_there_by_hand_is_taken(server):
    server.folder.mkdir(parents=True)
    (server.folder / 'tiny.pth').write_bytes(weights(2))
    assert read_checkpoint(server.url)['seed'] == 2
    assert not server.asked
    assert (server.folder / 'tiny.pth.sha256').is_file()


def test_a_broken_transfer_goes_on_where_it_was(server):
    server.plan = ['cut', 'cut']
    assert download.fetch(server.url).read_bytes() == server.content
    half = len(server.content) // 2
    assert [request.get('Range') for request in server.asked] == [
        None,
        f'bytes={half}-',
        f'bytes={half + (len(server.content) - half) // 2}-',
    ]
    assert all(request['If-Range'] == '"1"' for request in server.asked[1:])


@pytest.mark.parametrize('tag', [None, 'W/"1"'])
def test_without_a_strong_tag_a_broken_transfer_begins_anew(server, tag):
    server.plan, server.tag = ['cut'], tag
    assert download.fetch(server.url).read_bytes() == server.content
    assert [request.get('Range') for request in server.asked] == [None, None]


def test_a_file_that_changes_meanwhile_is_never_mixed(server, monkeypatch):
    server.plan = ['cut']
    changed = weights(3)

    def change(seconds):
        server.content, server.tag = changed, '"2"'

    monkeypatch.setattr(download.time, 'sleep', change)
    assert download.fetch(server.url).read_bytes() == changed
    assert 'Range' in server.asked[1]


def test_another_part_than_asked_for_is_not_taken(server):
    server.plan = ['cut', 'other part']
    assert download.fetch(server.url).read_bytes() == server.content
    assert ['Range' in request for request in server.asked] == [False, True, False]


@pytest.mark.parametrize('plan', [[503, 429], ['silent'], ['slow'], ['no length']])
def test_what_passes_is_waited_for(server, plan, monkeypatch):
    monkeypatch.setattr(download, 'SILENCE_SECONDS', 0.5)
    server.plan = list(plan)
    assert download.fetch(server.url).read_bytes() == server.content
    retried = {503: 3, 'silent': 2}.get(plan[0], 1)
    assert len(server.asked) == retried


@pytest.mark.parametrize(
    ('usual', 'reason', 'requests'),
    [
        (404, 'HTTP Error 404', 1),
        (403, 'HTTP Error 403', 1),
        (500, 'HTTP Error 500', download.ATTEMPTS),
        ('page', 'the server sent a web page in place of a checkpoint', 1),
        ('cut', r'only \d+ of \d+ bytes came', download.ATTEMPTS),
    ],
)
def test_what_does_not_pass_leaves_nothing_and_says_what_to_do(server, usual, reason, requests):
    server.usual, server.tag = usual, None
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(server.url)
    text = str(caught.value)
    assert server.url in text and f"save it as '{server.folder / 'tiny.pth'}'" in text
    assert '--cfg-options model.backbone.init_cfg.checkpoint=FILE' in text
    assert len(server.asked) == requests
    assert names(server.folder) == ['tiny.pth.lock']
    server.usual = 'whole'
    assert read_checkpoint(server.url)['seed'] == 0


def test_a_digest_in_the_name_is_checked_before_the_file_is_there(server):
    digest = hashlib.sha256(server.content).hexdigest()[:8]
    good = server.url.replace('tiny', f'tiny-{digest}')
    assert read_checkpoint(good)['seed'] == 0
    with pytest.raises(CheckpointError, match='not that in its name'):
        read_checkpoint(server.url.replace('tiny', 'tiny-0123abcd'))
    assert not (server.folder / 'tiny-0123abcd.pth').exists()


def test_without_a_server_or_a_disk(server, monkeypatch, tmp_path):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{unused.getsockname()[1]}/tiny.pth'
        with pytest.raises(CheckpointError, match='refused.*Fetch it on a machine with network'):
            download.fetch(url)
    with pytest.raises(CheckpointError, match='names no file'):
        download.fetch('https://example.org/')

    def full(self, answer, total):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(download._Transfer, '_write', full)
        with pytest.raises(CheckpointError, match='No space left'):
            download.fetch(server.url)
        assert len(server.asked) == 1
    assert names(server.folder) == ['tiny.pth.lock']
    (tmp_path / 'file').touch()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'file'))
    with pytest.raises(CheckpointError, match='cannot download'):
        download.fetch(server.url)


def _fetch_in_child(url):
    path = download.fetch(url)
    assert read_checkpoint(path)['seed'] == 0


def test_processes_of_a_node_share_one_download(server):
    server.usual, server.pause = 'slow', 0.02
    fork = multiprocessing.get_context('fork')
    ranks = [fork.Process(target=_fetch_in_child, args=(server.url,)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert len(server.asked) == 1


def test_a_killed_download_is_begun_anew(server):
    server.usual, server.pause = 'slow', 0.2
    child = multiprocessing.get_context('fork').Process(target=_fetch_in_child, args=(server.url,))
    child.start()
    partial = server.folder / 'tiny.pth.partial'
    deadline = time.monotonic() + 60
    while not (partial.is_file() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert partial.is_file() and not (server.folder / 'tiny.pth').exists()
    server.usual = 'whole'
    assert download.fetch(server.url).read_bytes() == server.content
    assert not partial.exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download needs."""

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        owner, name, _, revision, file = self.path.strip('/').split('/')
        self.server.asked.append((self.command, f'{owner}/{name}', revision, file))
        content = self.server.files.get((owner, name, file))
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header('X-Error-Code', 'EntryNotFound')
        content = content or b''
        self.send_header('X-Repo-Commit', '0' * 40)
        self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        return content


IN_HUB = """
import sys
from pathlib import Path
from evit_mm.checkpoint import read_checkpoint
from evit_mm.checkpoint.sources import local_path
from evit_mm.errors import CheckpointError

for source in sys.argv[1:]:
    try:
        print(read_checkpoint(source)['seed'])
    except CheckpointError as error:
        print(error)
blob = local_path(sys.argv[1]).resolve()
blob.chmod(0o644)
blob.write_bytes(blob.read_bytes() + b'x')
try:
    read_checkpoint(sys.argv[1])
except CheckpointError as error:
    print(error)
"""


@pytest.mark.slow
def test_names_on_the_hub_are_fetched_into_its_cache(tmp_path):
    hub = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    hub.asked = []
    hub.files = {
        ('timm', 'tiny.r224', 'pytorch_model.bin'): weights(4),
        ('someone', 'tiny', 'model.safetensors'): weights(5),  # told apart by content
    }
    thread = threading.Thread(target=hub.serve_forever, kwargs={'poll_interval': 0.02})
    thread.start()
    sources = ['timm://tiny.r224', 'timm/tiny.r224', 'hf-hub:someone/tiny@v1', 'timm/none']
    try:
        done = subprocess.run(
            [sys.executable, '-c', IN_HUB, *sources],
            env={
                **os.environ,
                'PYTHONPATH': str(ROOT),
                'HF_ENDPOINT': f'http://127.0.0.1:{hub.server_port}',
                'HF_HOME': str(tmp_path),
                'HF_HUB_DISABLE_XET': '1',
                'no_proxy': '*',
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
    assert done.returncode == 0, done.stderr
    first, second, third, missing, *changed = done.stdout.strip().splitlines()
    assert (first, second, third) == ('4', '4', '5')
    url = 'https://huggingface.co/timm/none/resolve/main/model.safetensors'
    assert "cannot download 'timm/none'" in missing and url in missing
    assert 'has the SHA-256' in changed[0] and 'was expected' in changed[0]
    fetched = [entry[1:] for entry in hub.asked if entry[0] == 'GET']
    assert fetched == [
        ('timm/tiny.r224', 'main', 'pytorch_model.bin'),
        ('someone/tiny', 'v1', 'model.safetensors'),
    ]
