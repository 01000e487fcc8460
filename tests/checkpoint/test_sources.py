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
from pathlib import Path

import pytest
import torch

from evit_mm.checkpoint import read_checkpoint, sources
from evit_mm.checkpoint.sources import local_path
from evit_mm.errors import CheckpointError
from evit_mm.models import EfficientViT
from tests.conftest import ROOT, TINY, randomise

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
        self.send_response(200)
        if act != 'no length':
            self.send_header('Content-Length', str(len(body)))
        self.send_header('Connection', 'close')
        self.close_connection = True
        self.end_headers()
        if act == 'cut':
            body = body[: len(body) // 2]
        if act == 'silent':
            self.wfile.write(body[:1000])
            self.wfile.flush()
            server.end.wait(5)
            return
        if act == 'slow':
            step = len(body) // 20 + 1
            for at in range(0, len(body), step):
                self.wfile.write(body[at : at + step])
                self.wfile.flush()
                time.sleep(server.pause)
            return
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that was killed is no news."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setenv('no_proxy', '*')
    found = Server(('127.0.0.1', 0), Handler)
    found.content, found.plan, found.usual = weights(), [], 'whole'
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


def left(server):
    """Name the files in the cache, but for locks."""
    return sorted(path.name for path in server.folder.iterdir() if path.suffix != '.lock')


def sizes(server):
    return [path.stat().st_size for path in server.folder.glob('*')]


def test_a_url_is_fetched_once(server):
    model = EfficientViT(TINY, init_cfg={'type': 'Pretrained', 'checkpoint': server.url})
    model.init_weights()
    assert read_checkpoint(server.url)['seed'] == 0
    assert len(server.asked) == 1
    path = server.folder / 'tiny.pth'
    assert path.read_bytes() == server.content
    assert path.stat().st_mode & 0o777 == 0o644  # others who share the cache may read it
    assert left(server) == ['tiny.pth']


def test_progress_is_shown_on_a_terminal_only(server, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    local_path(server.url)
    assert '100%' in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: False, raising=False)
    local_path(server.url.replace('tiny', 'other'))
    assert '100%' not in capsys.readouterr().err


def test_a_file_that_was_put_there_by_hand_is_taken(server):
    server.folder.mkdir(parents=True)
    (server.folder / 'tiny.pth').write_bytes(weights(2))
    assert read_checkpoint(server.url)['seed'] == 2
    assert not server.asked


@pytest.mark.parametrize('plan', [[503, 429], ['cut'], ['silent'], ['slow'], ['no length']])
def test_what_passes_is_waited_for(server, plan, monkeypatch):
    monkeypatch.setattr(sources, 'TIMEOUT_SECONDS', 0.5)
    server.plan = list(plan)
    assert local_path(server.url).read_bytes() == server.content
    retried = {503: 3, 'silent': 2, 'cut': 2}.get(plan[0], 1)
    assert len(server.asked) == retried


def test_what_came_before_a_cut_is_never_mixed_with_another_file(server, monkeypatch):
    server.plan = ['cut']
    changed = weights(3)
    monkeypatch.setattr('time.sleep', lambda seconds: setattr(server, 'content', changed))
    assert local_path(server.url).read_bytes() == changed


@pytest.mark.parametrize(
    ('usual', 'reason', 'requests'),
    [
        (404, '404 Client Error', 3),
        (500, '500 Server Error', 3),
        ('page', 'the server sent a web page instead of a checkpoint', 3),
        ('cut', r'\d+ bytes read, \d+ more expected', 3),
    ],
)
def test_what_does_not_pass_leaves_nothing_and_says_what_to_do(server, usual, reason, requests):
    server.usual = usual
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(server.url)
    text = str(caught.value)
    assert server.url in text and f"save it as '{server.folder / 'tiny.pth'}'" in text
    assert '--cfg-options model.backbone.init_cfg.checkpoint=FILE' in text
    assert len(server.asked) == requests
    assert left(server) == []
    server.usual = 'whole'
    assert read_checkpoint(server.url)['seed'] == 0


def test_a_digest_in_the_name_is_checked_before_the_file_is_there(server):
    digest = hashlib.sha256(server.content).hexdigest()[:8]
    good = server.url.replace('tiny', f'tiny-{digest}')
    assert read_checkpoint(good)['seed'] == 0
    with pytest.raises(CheckpointError, match='its name requires 0123abcd'):
        read_checkpoint(server.url.replace('tiny', 'tiny-0123abcd'))
    assert left(server) == [f'tiny-{digest}.pth']


def test_without_a_server_or_a_disk(server, monkeypatch, tmp_path):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        url = f'http://127.0.0.1:{unused.getsockname()[1]}/tiny.pth'
        with pytest.raises(CheckpointError, match='refused.*Download it on a machine with network'):
            local_path(url)
    with pytest.raises(CheckpointError, match='contains no file name'):
        local_path('https://example.org/')

    def full(self, url, output_file, pooch):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr('pooch.HTTPDownloader.__call__', full)
        with pytest.raises(CheckpointError, match='No space left'):
            local_path(server.url)
    assert left(server) == []
    (tmp_path / 'file').touch()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'file'))
    with pytest.raises(CheckpointError, match='cannot download'):
        local_path(server.url)


def _fetch_in_child(url):
    path = local_path(url)
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


def test_a_killed_download_is_begun_anew(server, monkeypatch):
    monkeypatch.setattr(sources, 'CHUNK_BYTES', 1000)
    server.usual, server.pause = 'slow', 0.2
    child = multiprocessing.get_context('fork').Process(target=_fetch_in_child, args=(server.url,))
    child.start()
    deadline = time.monotonic() + 60
    while not any(size for size in sizes(server)) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert any(sizes(server)) and not (server.folder / 'tiny.pth').exists()
    server.usual = 'whole'
    assert local_path(server.url).read_bytes() == server.content


def test_names_on_the_hub_are_told_from_paths(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        'huggingface_hub.hf_hub_download',
        lambda name, file, revision: asked.append((name, file, revision)) or tmp_path,
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'timm' / 'here').mkdir(parents=True)
    for path in ('timm/here', 'timm/here/a.pth', 'other/name', './timm/gone'):
        assert local_path(path) == Path(path) and not asked
    names = ('timm/net', 'timm://net', 'hf-hub:me/net@v1')
    assert [local_path(name) for name in names] == [tmp_path] * 3
    file = 'model.safetensors'
    assert asked == [('timm/net', file, None)] * 2 + [('me/net', file, 'v1')]
    monkeypatch.setenv('HOME', str(tmp_path))
    assert local_path('~/a.pth') == tmp_path / 'a.pth'


def test_the_hub_is_asked_for_both_files_before_it_is_an_error(tmp_path, monkeypatch):
    there, asked = 'pytorch_model.bin', []

    def download(name, file, revision):
        asked.append(file)
        if file != there:
            raise OSError(f'no {file}\nat {revision}')
        return str(tmp_path / file)

    monkeypatch.setattr('huggingface_hub.hf_hub_download', download)
    assert local_path('timm://net') == tmp_path / there
    assert asked == ['model.safetensors', 'pytorch_model.bin']
    there = None
    for name, revision in (('me/net@v1', 'v1'), ('me/net', 'main')):
        url = f'https://huggingface.co/me/net/resolve/{revision}/model.safetensors on'
        with pytest.raises(CheckpointError, match=url) as caught:
            local_path(f'hf-hub:{name}')
        assert str(caught.value).startswith(
            f"cannot download '{name}' from the Hugging Face hub (no pytorch_model.bin). "
        )


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
from evit_mm.checkpoint import read_checkpoint
from evit_mm.errors import CheckpointError

for source in sys.argv[1:]:
    try:
        print(read_checkpoint(source)['seed'])
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
    names = ['timm://tiny.r224', 'timm/tiny.r224', 'hf-hub:someone/tiny@v1', 'timm/none']
    try:
        done = subprocess.run(
            [sys.executable, '-c', IN_HUB, *names],
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
    first, second, third, missing = done.stdout.strip().splitlines()
    assert (first, second, third) == ('4', '4', '5')
    url = 'https://huggingface.co/timm/none/resolve/main/model.safetensors'
    assert "cannot download 'timm/none'" in missing and url in missing
    fetched = [entry[1:] for entry in hub.asked if entry[0] == 'GET']
    assert fetched == [
        ('timm/tiny.r224', 'main', 'pytorch_model.bin'),
        ('someone/tiny', 'v1', 'model.safetensors'),
    ]
