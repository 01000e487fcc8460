"""Every code block of README, CONTRIBUTING and docs, tested as ``doc_blocks`` plans it."""

import argparse
import ast
import contextlib
import importlib.metadata
import importlib.util
import inspect
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
from mmengine.config import Config
from mmengine.registry import Registry, init_default_scope

from evit_mm.models import EfficientViT
from evit_mm.runner.config import load_config

from . import doc_blocks
from .conftest import TINY
from .doc_blocks import PLACEHOLDERS, REPLACED, ROOT, SMALL, USAGE, Block, Item

# what stands for CONFIG when the names of overrides are checked
SOME_CONFIG = 'configs/retinanet_evit_m4_coco.py'
# a base that a page names without saying where the reader's own lies
BASES = {'retinanet_r50_fpn_1x_coco.py': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'}
# what a page's snippet takes for granted
GIVEN = {'docs/deployment.md': lambda: {'model': EfficientViT(TINY).eval()}}
PAGES = [path for path in doc_blocks.pages() if doc_blocks.read_blocks(path)]
PARAMS = [
    pytest.param(
        path,
        id=path.relative_to(ROOT).as_posix(),
        marks=[pytest.mark.slow] * (path.relative_to(ROOT).as_posix() in doc_blocks.RUN_PAGES),
    )
    for path in PAGES
]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A folder like the repository's root, in which commands may write."""
    for name in ('configs', 'tools', 'evit_mm', 'examples', 'requirements', 'setup.py'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'docs' / 'images').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('path', PARAMS)
def test_page(path, copy):
    blocks = doc_blocks.read_blocks(path)
    items = [item for block in blocks for item in doc_blocks.plan(block)]
    for block in blocks:  # a command may name a config that the page has the reader write
        for name in re.findall(r'\b(my_\w+\.py)\b', path.read_text()):
            if block.is_config:
                (copy / name).write_text(block.text)
    for item in [*items, *doc_blocks.inline_commands(path)]:
        try:
            check(item)
        except BaseException as error:
            where = f'{item.block.page}:{item.block.line}'
            raise AssertionError(f'{where}: {item.command or item.block.text}\n{error}') from error


def check(item: Item) -> None:
    """Do with a block or command what its kind says."""
    if item.by:
        assert_is_a_test_of(item)
    elif item.kind == 'built':
        build(item.block)
    elif item.kind == 'run':
        run_tool(item) if item.command else run_snippet(item.block)
    elif item.kind == 'dry run':
        subprocess.run(
            ['make', '-n', *item.words[1:]], cwd=ROOT, check=True, capture_output=True, text=True
        )
    elif item.kind == 'parsed':
        parse(item)
    elif item.kind == 'not run':
        text = (ROOT / item.block.page).read_text().splitlines()[: item.block.line]
        section = '\n'.join(text).rsplit('\n#', 1)[1]
        assert re.search('not run', section, re.IGNORECASE), 'its section must say "not run"'
    elif item.kind == 'text':
        first = item.block.text.split()[0]
        assert not re.match(r'[$.]$|(tools/.*|python\d?|[A-Z_]+=.*)$', first), 'a command'
        assert shutil.which(first) is None, f'{first} is a command'
    else:
        assert item.kind == 'directive', item.kind


def assert_is_a_test_of(item: Item) -> None:
    file, name = item.by.split('::')
    source = (ROOT / 'tests' / file).read_text()
    assert name in {n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    named = item.block.page if item.by in doc_blocks.RUN_ELSEWHERE.values() else item.words[1]
    assert named.rsplit('/')[-1] in source


def build(block: Block) -> None:
    """Read a config and build its model, without fetching weights."""
    text = block.text
    for base, instead in BASES.items():
        text = text.replace(f"_base_ = '{base}'", f"_base_ = '{instead}'")
    with open('snippet.py', 'w') as file:
        file.write(text)
    cfg = load_config('snippet.py')
    scope = cfg.get('default_scope', 'mmdet')
    init_default_scope(scope)
    registry = importlib.import_module(f'{scope}.registry').MODELS
    if 'data_preprocessor' in cfg:
        cfg.model.data_preprocessor = cfg.data_preprocessor
    model = registry.build(cfg.model)
    assert isinstance(model.backbone, EfficientViT)
    if hasattr(model.neck, 'in_channels'):
        assert tuple(model.neck.in_channels) == model.backbone.out_channels


def run_snippet(block: Block) -> None:
    """Run a script; what it prints is what the comment behind each print says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(block.text, GIVEN.get(block.page, dict)())
    promised = re.findall(r'^print\(.*\)  # (.+)$', block.text, re.MULTILINE)
    assert said.getvalue().splitlines()[: len(promised)] == promised


def run_tool(item: Item) -> None:
    """Run a tool in this process as the command says, smaller by what ``SMALL`` says."""
    words = [*item.words, *SMALL.get(item.tool, [])]
    for old, new in REPLACED.items():
        words = [word.replace(old, new) for word in words]
    assert words[0] == 'python'
    with arguments(words[1:]), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(str(ROOT / words[1]), run_name='__main__')


@contextlib.contextmanager
def arguments(argv):
    before, sys.argv = sys.argv, list(argv)
    try:
        yield
    finally:
        sys.argv = before


def parse(item: Item) -> None:
    """Check a command without running it."""
    program, *rest = item.words
    if program == 'python' and rest[0] == '-m':
        assert importlib.util.find_spec(rest[1]), f'no module {rest[1]}'
    elif program == 'python' and rest[0] == '-c':
        run_imports(rest[1])
    elif program == 'python' and item.tool and item.is_usage:
        parse_usage(item)
    elif program == 'python' and item.tool:
        check_arguments(*parse_tool(rest))
    elif program.startswith('tools/dist_') and item.is_usage:
        assert os.access(program, os.X_OK)
    elif program.startswith('tools/dist_'):
        parse_launcher(item.words)
    elif program == 'pip':
        parse_pip(rest)
    elif program == 'apt-get':
        assert rest[0] == 'install' and 'python3-venv' in rest
    elif program == 'git':
        known = subprocess.run(['git', '--list-cmds=main'], capture_output=True, text=True)
        assert rest[0] in known.stdout.split(), f'git has no {rest[0]}'
    elif console_script(program):
        pass  # a program of an installed package; its flags are not looked at
    elif program == '.':
        environment = rest[0].partition('/')[0]
        assert item.words == ['.', f'{environment}/bin/activate']
        assert environment == '.venv' or f'python -m venv {environment}\n' in item.block.text
    else:
        assert item.words == ['cd', 'evit_mm'], 'unknown command'


def console_script(name: str) -> bool:
    return bool(importlib.metadata.entry_points(group='console_scripts', name=name))


def run_imports(code: str) -> None:
    """Run the imports of a line of Python, and know the names that it calls."""
    tree = ast.parse(code)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    scope = {}
    exec(compile(ast.Module(imports, []), 'sentence', 'exec'), scope)
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert all(name in scope or name == 'print' for name in calls)


def parse_tool(words: list[str]) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Let a tool's own parser read a command; return what it read, and the parser."""
    namespace = runpy.run_path(str(ROOT / words[0]), run_name='tool')
    if 'parse_args' not in namespace:
        assert len(words) == 1, f'{words[0]} takes no arguments'
        return argparse.Namespace(), argparse.ArgumentParser()
    parsers, said = [], io.StringIO()
    plain = argparse.ArgumentParser.parse_args

    def recording(parser, *args, **kwargs):
        parsers.append(parser)
        return plain(parser, *args, **kwargs)

    with arguments(words), pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, 'parse_args', recording)
        try:
            with contextlib.redirect_stderr(said):
                return namespace['parse_args'](), parsers[-1]
        except SystemExit:
            raise AssertionError(said.getvalue()) from None


def parse_usage(item: Item) -> None:
    """Check the part without brackets as a command, and every flag within them by its name."""
    plain = [PLACEHOLDERS.get(word, word) for word in shlex.split(USAGE.sub('', item.command))]
    _, parser = parse_tool(plain[1:])
    for bracket in USAGE.findall(item.command):
        words = bracket.strip('[]').split()
        for flag, value in zip(words, [*words[1:], ''], strict=True):
            if flag.startswith('-'):
                assert flag in parser._option_string_actions, f'no option {flag}'
                choices = parser._option_string_actions[flag].choices
                if choices and '|' in value:
                    assert set(value.split('|')) == set(choices), f'{flag} takes {choices}'


def parse_launcher(words: list[str]) -> None:
    """Run the real launcher with ``echo`` as Python, then parse what it would have started."""
    environment = {**os.environ, 'PYTHON': 'echo'}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    started = shlex.split(done.stdout)
    tool = next(i for i, word in enumerate(started) if word.endswith('.py'))
    launched = started[tool].rsplit('/tools/')[-1]
    check_arguments(*parse_tool([f'tools/{launched}', *started[tool + 1 :]]))


def parse_pip(words: list[str]) -> None:
    """Check that extras and files of requirements exist."""
    assert words[0] == 'install'
    setup = (ROOT / 'setup.py').read_text()
    for word in words[1:]:
        for extra in re.findall(r'\[([\w,-]+)\]', word):
            for name in extra.split(','):
                assert re.search(rf"'{name}'[:\]]", setup), f'no extra {name}'
        if word.endswith('.txt'):
            assert (ROOT / word).is_file(), f'no {word}'


def check_arguments(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Configs exist and load, overrides name fields, and lists of names are known ones."""
    values = vars(args)
    config = values.get('config')
    if isinstance(config, str):
        named = ROOT / 'configs' / f'{config}.py'  # python -m evit_mm takes a config's name too
        cfg = load_config(
            SOME_CONFIG if config == 'CONFIG' else named if named.is_file() else config
        )
        for key in values.get('cfg_options') or {}:
            assert_is_a_field(cfg, key)
    for name in values.get('models') or []:
        assert name in importlib.import_module('evit_mm.compare').available_models()
    for name in values.get('suites') or []:
        assert name in importlib.import_module('evit_mm.compare.benchmark').SUITES


def assert_is_a_field(cfg: Config, key: str) -> None:
    """A dotted key leads through the config to a field, or to an argument of what is built."""
    *way, last = key.split('.')
    node = cfg
    for step in way:
        node = node[int(step)] if step.isdigit() else node[step]
    assert last in node or ('type' in node and last in arguments_of(node['type'])), (
        f'--cfg-options {key}: no such field'
    )


def arguments_of(name: str) -> set[str]:
    """Return the arguments of a registered class and of its bases."""
    registries = vars(importlib.import_module('mmdet.registry')).values()
    found = (r.get(name) for r in registries if isinstance(r, Registry))
    cls = next(x for x in found if x is not None)
    return {arg for base in cls.__mro__ for arg in inspect.signature(base.__init__).parameters}


def block_of(language: str, text: str) -> Block:
    return Block('docs/made_up.md', 1, language, text)


@pytest.mark.parametrize(
    'language, text, fault',
    [
        ('ruby', 'puts 1', 'unknown language'),
        ('fence', 'python tools/train.py x.py', 'a command'),
        ('code_block', 'git clone x', 'git is a command'),
        ('bash', 'curl example.org', 'unknown command'),
        ('bash', 'make nothing', 'returned non-zero'),
        ('bash', 'python tools/train.py configs/nothing.py', 'nothing.py'),
        ('bash', f'python tools/train.py {SOME_CONFIG} --sede 0', 'unrecognized arguments: --sede'),
        ('bash', f'python tools/train.py {SOME_CONFIG} --cfg-options model.nek=1', 'no such field'),
        ('bash', 'python tools/train.py CONFIG [--sede N]', 'no option --sede'),
        ('bash', 'python tools/convert_checkpoint.py IN OUT [--to timm|tim]', '--to takes'),
        ('bash', 'tools/dist_train.sh configs/nothing.py 8', 'nothing.py'),
        ('bash', 'pip install evit_mm[nothing]', 'no extra nothing'),
        ('bash', 'python -m no_such_module', 'no module'),
        ('bash', 'python tools/compare.py --data DIR --models evit_m9', ''),
        ('text', 'make train', 'make is a command'),
        ('text', '$ anything', 'a command'),
        ('python', 'print(1 + 1)  # 3', ''),
        ('python', 'import evit_mm.nothing', 'No module named'),
    ],
)
def test_what_is_wrong_is_found(language, text, fault, copy):
    """The harness can fail, on every kind of block."""
    with pytest.raises((Exception, SystemExit)) as found:
        for item in doc_blocks.plan(block_of(language, text)):
            check(item)
    assert fault in f'{found.value}{getattr(found.value, "stderr", "")}'


def test_a_command_that_is_not_run_says_so():
    page = ROOT / 'docs' / 'reproduce.md'
    block = Block(
        'docs/reproduce.md', len(page.read_text().splitlines()), 'bash', 'trtexec --onnx=x'
    )
    (item,) = doc_blocks.plan(block)
    with pytest.raises(AssertionError, match='must say "not run"'):
        check(item)


def test_nothing_is_left_out_of_the_count():
    """The plan has an entry for each fence of each page, found here without a parser."""
    for path in PAGES:
        fences = len(re.findall(r'^```', path.read_text(), re.MULTILINE))
        assert 2 * len(doc_blocks.read_blocks(path)) == fences
    counts = doc_blocks.count()
    assert not [kind for kinds in counts.values() for kind in kinds if 'unknown' in kind]
    assert counts['docs/start.md']['run'] == 5 and counts['docs/deployment.md']['not run'] == 1
