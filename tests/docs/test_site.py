"""The site: built without a warning, complete, whole in itself, and working in a browser."""

import ast
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from draw_architecture import draw
from evit_mm.models import VARIANTS
from tests.conftest import ROOT

DOCS = ROOT / 'docs'


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    """The built site's folder; ``make docs`` has the same command, but for the folder."""
    folder = tmp_path_factory.mktemp('site')
    recipe = subprocess.run(['make', '-n', 'docs'], cwd=ROOT, capture_output=True, text=True)
    command = re.search(r'-m sphinx (.*) docs docs/_build/html', recipe.stdout)
    assert command, f'make docs does not call Sphinx: {recipe.stdout}{recipe.stderr}'
    flags = command[1].split()
    assert '-W' in flags and '-n' in flags
    # a proxy that nobody serves: whatever asked for the network would fail
    nowhere = dict.fromkeys(('http_proxy', 'https_proxy', 'all_proxy'), 'http://127.0.0.1:9')
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', *flags, 'docs', folder],
        cwd=ROOT,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith('operators: ')]
    assert done.returncode == 0 and not said, done.stderr[-5000:]
    return folder


class Links(HTMLParser):
    """Collect a page's ids, its links, and what the browser fetches by itself."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.fetched = set(), [], []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs['id']} if attrs.get('id') else set()
        if tag == 'a' and attrs.get('href'):
            self.links.append(attrs['href'])
        if tag in ('script', 'img', 'iframe', 'source') and attrs.get('src'):
            self.fetched.append(attrs['src'])
        if tag == 'link' and attrs.get('rel') in ('stylesheet', 'icon', 'preload', 'prefetch'):
            self.fetched.append(attrs['href'])


@pytest.fixture(scope='session')
def parsed(site):
    return {path: Links(path) for path in sorted(site.rglob('*.html'))}


def test_every_page_is_in_the_site(site):
    written = {p.relative_to(DOCS).with_suffix('') for p in DOCS.rglob('*.md')}
    written = {path for path in written if '_build' not in path.parts}
    built = {p.relative_to(site).with_suffix('') for p in site.rglob('*.html')}
    assert len(written) > 20 and not written - built
    index = (site / 'index.html').read_text()
    for page in ('start', 'your_data', 'your_detector', 'models', 'architecture', 'api'):
        assert f'href="{page}.html"' in index
    assert '[Unreleased]' in (site / 'changelog.html').read_text()
    contributing = re.sub('<[^>]+>', '', (site / 'contributing.html').read_text())
    assert 'make lint' in contributing


def test_no_page_of_the_docs_has_its_path_as_title(site):
    for path in DOCS.rglob('*.md'):
        name = path.relative_to(DOCS).with_suffix('.html')
        if '_build' not in name.parts:
            title = re.search('<h1>(.*?)<', (site / name).read_text(encoding='utf-8'))[1]
            assert '/' not in title, name


def test_every_module_has_its_public_names_in_the_api(site):
    missing, count = [], 0
    for path in (ROOT / 'evit_mm').rglob('*.py'):
        parts = path.relative_to(ROOT).with_suffix('').parts
        parts = parts[:-1] if parts[-1] == '__init__' else parts
        if any(part.startswith('_') for part in parts):
            continue
        page = Links(site.joinpath('api', *parts, 'index.html'))
        body = ast.parse(path.read_text()).body
        named = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        public = {node.name for node in named if node.name[0] != '_'}
        for node in body:  # a module that says what it offers offers no more
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
                public &= set(ast.literal_eval(node.value))
        names = {'.'.join((*parts, name)) for name in public}
        missing += names - page.ids
        count += len(names)
    assert count > 300 and not missing


def test_no_page_fetches_anything_from_elsewhere(site, parsed):
    fetched = {url for page in parsed.values() for url in page.fetched}
    assert len(fetched) > 3
    assert not [url for url in fetched if urlsplit(url).netloc]
    for style in site.rglob('*.css'):
        assert not re.findall(r'(?:url\(|@import)\s*["\']?(?:https?:)?//', style.read_text())


def test_every_link_leads_to_a_file_and_an_anchor(parsed):
    broken, checked = [], 0
    for path, page in parsed.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            checked += 1
            anchor = unquote(parts.fragment)
            if not target.is_file():
                broken.append(f'{path.name}: {link}')
            elif anchor and target.suffix == '.html' and anchor not in parsed[target].ids:
                broken.append(f'{path.name}: {link} has no such anchor')
    assert checked > 1000 and not broken


@pytest.fixture(scope='module')
def served(site):
    """The site's address while a local server runs."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=site)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f'http://127.0.0.1:{server.server_address[1]}'
    server.shutdown()
    server.server_close()


# upright words are left out; fonts differ between machines, so a few pixels are allowed
WORDS_OUTSIDE_THEIR_BOX = """() => {
    const boxes = [...document.querySelectorAll('rect')].map(r => r.getBBox());
    const texts = [...document.querySelectorAll('text:not([transform])')];
    const words = texts.filter(text => {
        const t = text.getBBox(), x = t.x + t.width / 2, y = t.y + t.height / 2;
        const around = boxes.filter(
            b => b.x <= x && x <= b.x + b.width && b.y <= y && y <= b.y + b.height);
        const box = around.sort((a, b) => a.width - b.width)[0];
        return !box || t.x < box.x - 3 || t.x + t.width > box.x + box.width + 3;
    });
    return {looked_at: texts.length, words: words.map(text => text.textContent)};
}"""
PAGES = (
    'index',
    'start',
    'models',
    'architecture',
    'api/evit_mm/models/index',
    'performance/forms',
)


@pytest.mark.parametrize('width', [1280, 390])
def test_pages_load_on_desktop_and_phone_without_the_network(served, page, width):
    asked = []
    page.on('request', lambda request: asked.append(request.url))
    page.set_viewport_size({'width': width, 'height': 844})
    for name in PAGES:
        page.goto(f'{served}/{name}.html', wait_until='load')
        assert page.locator('h1').first.is_visible()
        # what is wider than the screen scrolls within itself
        assert page.evaluate('document.documentElement.scrollWidth') <= width
    assert len(asked) > len(PAGES) and all(url.startswith((served, 'data:')) for url in asked)


def test_the_picture_is_drawn_in_the_browser(served, page):
    page.goto(f'{served}/architecture.html')
    picture = page.locator('img[src$="architecture.svg"]')
    assert picture.evaluate('image => image.complete && image.naturalWidth') > 500
    page.goto((DOCS / 'images' / 'architecture.svg').as_uri())
    outside = page.evaluate(WORDS_OUTSIDE_THEIR_BOX)
    assert outside['looked_at'] > 100 and not outside['words']


def test_search_finds_a_page_by_its_words(served, page):
    page.goto(f'{served}/index.html')
    page.fill('input[name=q]', 'winograd')
    page.press('input[name=q]', 'Enter')
    page.wait_for_selector('#search-results ul.search li a')
    found = page.locator('#search-results ul.search li a').all_inner_texts()
    assert any('winograd' in text.lower() for text in found)


def test_search_works_from_the_disk(site, page):
    page.goto(f'{(site / "search.html").as_uri()}?q=cascade')
    page.wait_for_selector('#search-results ul.search li a')
    assert 'Architecture' in page.locator('#search-results').inner_text()


def test_the_committed_picture_is_what_the_command_draws():
    assert (DOCS / 'images' / 'architecture.svg').read_text() == draw('m4')


@pytest.mark.parametrize('arch', VARIANTS)
def test_the_picture_has_the_shapes_that_the_variant_promises(arch):
    variant, words = VARIANTS[arch], re.findall(r'>([^<>]+)</text>', draw(arch, (256, 320)))
    for dim, stride in zip(variant.embed_dims, (16, 32, 64), strict=True):
        assert f'{dim} × {256 // stride} × {320 // stride}' in words
    for level, stride in enumerate((8, 16, 32, 64, 128), 3):
        assert f'P{level}: /{stride}' in words
        assert f'256 × {-(-256 // stride)} × {-(-320 // stride)}' in words
    heads = variant.num_heads[1]
    kernels = [word for word in words if word.startswith('Q: ')]
    assert kernels == [f'Q: {k}×{k}' for k in variant.kernel_sizes[:heads]]
    share = variant.embed_dims[1] // heads
    assert f'channels {share * (heads - 1)}–{variant.embed_dims[1] - 1}' in words


def test_an_unknown_variant_is_named():
    with pytest.raises(KeyError, match='m9'):
        draw('m9')


def test_every_test_that_a_page_names_exists():
    pages = [*ROOT.glob('*.md'), *DOCS.rglob('*.md')]
    named = [pair for p in pages for pair in re.findall(r'([\w/]+\.py)::(\w+)', p.read_text())]
    assert len(named) > 8
    for file, function in named:
        tree = ast.parse((ROOT / 'tests' / file.removeprefix('tests/')).read_text())
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert function in functions, file


def test_every_deviation_names_the_test_that_pins_it():
    table = (DOCS / 'deviations.md').read_text().split('| test |')[1].split('\n\n')[0]
    rows = [line for line in table.splitlines() if line.startswith('| ')]
    assert len(rows) >= 8
    assert not [row for row in rows if not re.search(r'`\w+/test_\w+\.py::test_\w+` \|$', row)]
