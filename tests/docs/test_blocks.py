"""Every code block of the pages, and every command in a sentence, is run, built or parsed.

Sybil finds the blocks. Python is run as it is printed; a config is read and its model built; of a
command, what takes seconds is run (``SMALL`` says what is made smaller), what needs COCO, GPUs or
hours is read by the tool's own parser, its files have to exist and load, and its overrides have to
name fields that exist. A block of another language, or an unknown command, is an error.
"""

import argparse
import ast
import contextlib
import importlib
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
from functools import partial
from pathlib import Path

import cv2
import pytest
import timm
import torch
from markdown_it import MarkdownIt
from mmengine.registry import Registry, init_default_scope
from sybil import Region, Sybil
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from evit_mm.models import EfficientViT
from evit_mm.runner.config import load_config
from tests.conftest import ROOT, TINY
from tests.exported import write_exported
from tests.inference.test_run import noise

# pages and scripts that another test runs, which is not done twice
RUN_ELSEWHERE = {
    'docs/your_data.md': 'docs/test_pages.py::test_your_data_page_on_the_blood_cells',
    'docs/your_detector.md': 'configs/test_drop_in.py::test_every_block_of_the_page_is_tested',
    'docs/checkpoints.md': 'docs/test_checkpoints.py::test_the_pages_commands_and_snippets',
    'docs/hub.md': 'deploy/test_hub.py::test_the_page_on_publishing',
    'examples/onnx_numpy.py': 'deploy/test_export.py::test_an_example_finds_what_predict_finds',
    'examples/openvino_numpy.py': 'deploy/test_export.py::test_an_example_finds_what_predict_finds',
    'examples/server.py': 'examples/test_examples.py::test_the_command_starts_the_server',
}
# pages whose tools are all run, one after the other
RUN_PAGES = ('docs/start.md',)
# tools that take seconds, so that they are run on every page
QUICK_TOOLS = ('make_shapes', 'draw_architecture')
# what is added to a command that is run, and what is replaced in it: one short epoch on few images
SMALL = {
    'make_shapes': ['--train', '16', '--val', '8', '--size', '64x64'],
    'train': [
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False',
    ],
    'test': ['--cfg-options', 'model.test_cfg.score_thr=0.0'],
    'predict': ['--cfg-options', 'model.test_cfg.score_thr=0.0'],
}
REPLACED = {'epoch_12.pth': 'epoch_1.pth'}
# programs that are nowhere here
NOT_HERE = ('trtexec', 'docker')
# in usage lines: words that stand for something
PLACEHOLDERS = {'N': '1', 'GPUS': '2', 'WxH': '320x240', 'H': '320', 'W': '320'}
USAGE = re.compile(r'\[[^\]]*\]|\.\.\.')
# what stands for CONFIG when the names of overrides are checked
SOME_CONFIG = 'configs/retinanet_evit_m4_coco.py'
# a base that a page names without saying where the reader's own lies
BASES = {'retinanet_r50_fpn_1x_coco.py': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'}


def write_model_and_image(model='work_dirs/cells.onnx'):
    os.makedirs('work_dirs', exist_ok=True)
    write_exported(Path(model))
    cv2.imwrite('image.jpg', noise(0))
    return {}


class ThreeOutputs(torch.nn.Module):
    def forward(self, image, size):
        return image.sum(1), size + 1, size - 1


def write_exported_files():
    write_model_and_image()
    inputs = {'image': torch.rand(1, 3, 32, 32), 'size': torch.ones(1, 2)}
    program = torch.export.export(ThreeOutputs(), tuple(inputs.values()))
    torch.export.save(program, 'work_dirs/cells.pt2')
    return {'model': EfficientViT(TINY).eval(), **inputs}


# what a page's snippet takes for granted
GIVEN = {
    'README.md': partial(write_model_and_image, 'detector.onnx'),
    'docs/deployment.md': write_exported_files,
    'docs/looking.md': write_model_and_image,
}


def page_of(example):
    return os.path.relpath(example.path, ROOT)


# --- what is done with a block of each language


def check_python(example):
    if page_of(example) in RUN_ELSEWHERE:
        assert_is_a_test_of(page_of(example))
    if example.parsed.startswith('_base_ ='):
        # a command of the page may name the config that the page has the reader write
        for name in re.findall(r'\bmy_\w+\.py\b', example.document.text):
            with open(name, 'w') as file:
                file.write(example.parsed)
    if page_of(example) not in RUN_ELSEWHERE:
        is_config = example.parsed.startswith('_base_ =')
        build(example.parsed) if is_config else run_snippet(example)


def check_shell(example):
    lines = re.split(r'\n| && ', re.sub(r'\\\n\s*', ' ', example.parsed))
    for line in filter(None, map(str.strip, lines)):
        if not line.startswith('#'):
            check_command(example, line)


def check_text(example):
    """Text is no code: its first word is no command."""
    first = example.parsed.split()[0]
    assert not re.match(r'[$.]$|(tools/.*|python\d?|[A-Z_]+=.*)$', first), 'a command'
    assert shutil.which(first) is None, f'{first} is a command'


def check_directive(example):
    """Directives are built with the site."""
    assert example.region.lexemes['language'].endswith('}')


LANGUAGES = {
    'python': check_python,
    'bash': check_shell,
    'text': check_text,
    '': check_text,
    'bibtex': check_text,
}


def parse_blocks(document):
    """Give Sybil every fenced block."""
    for region in RawFencedCodeBlockLexer(re.compile(r'(?P<language>[^\n]*)\n'))(document):
        language = region.lexemes['language'] = region.lexemes['language'].strip()
        assert language in LANGUAGES or language[0] == '{', f'{document.path}: language {language}'
        region.parsed = region.lexemes['source']
        region.evaluator = LANGUAGES.get(language, check_directive)
        yield region


def parse_sentences(document):
    """Give Sybil every command that stands within a sentence."""
    for found in re.finditer(r'`((?:python (?:tools/|-c )|make \w)[^`]*)`', document.text):
        command = ' '.join(found[1].split())
        yield Region(*found.span(), parsed=command, evaluator=check_sentence)


def check_sentence(example):
    words = words_of(example.parsed)
    make(words) if words[0] == 'make' else parse(example, example.parsed)


SYBIL = Sybil(parsers=[parse_blocks, parse_sentences], path='..', patterns=['*.md'])
PAGES = [*ROOT.glob('*.md'), *(ROOT / 'configs').glob('*.md'), *(ROOT / 'docs').rglob('*.md')]
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): SYBIL.parse(path)
    for path in sorted(PAGES)
    if '_build' not in path.parts
}


@pytest.mark.parametrize(
    'page',
    [
        pytest.param(page, marks=[pytest.mark.slow] * (page in RUN_PAGES))
        for page, document in DOCUMENTS.items()
        if list(document)
    ],
)
def test_page(page, tmp_path, monkeypatch):
    """Its blocks in their order, in a folder like the repository's root that may be written to."""
    for name in ('configs', 'tools', 'evit_mm', 'examples', 'requirements', 'setup.py'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'docs' / 'images').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for example in DOCUMENTS[page]:
        try:
            example.evaluate()
        except BaseException as error:
            where = f'{page}:{example.line}'
            raise AssertionError(f'{where}: {example.parsed}\n{error}') from error


@pytest.mark.parametrize('page', DOCUMENTS)
def test_no_block_is_hidden_by_its_indent(page):
    """Sybil finds fences only."""
    tokens = MarkdownIt('commonmark').parse((ROOT / page).read_text())
    assert not [token.content for token in tokens if token.type == 'code_block']


# --- Python and configs


def assert_is_a_test_of(name):
    file, function = RUN_ELSEWHERE[name].split('::')
    module = importlib.import_module('tests.' + file.removesuffix('.py').replace('/', '.'))
    assert callable(getattr(module, function))
    assert name.rsplit('/')[-1] in inspect.getsource(module)


def build(text):
    """Read a config and build its model, without fetching weights."""
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


def run_snippet(example):
    """Run a script; what it prints is what the comment behind each print says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(example.parsed, GIVEN.get(page_of(example), dict)())
    promised = re.findall(r'^print\(.*\)  # (.+)$', example.parsed, re.MULTILINE)
    assert said.getvalue().splitlines()[: len(promised)] == promised


# --- commands


def words_of(command):
    """Return a command as the shell would split it, its environment and srun's part left out."""
    words = shlex.split(command, comments=True)
    while words and re.match(r'[A-Z_]+=', words[0]):
        words.pop(0)
    if words[:1] == ['srun']:
        words = words[words.index('python') :]
    if 'evit_mm' in words[:-1]:  # python -m evit_mm NAME, evit_mm NAME: tools/NAME.py
        name, *rest = words[words.index('evit_mm') + 1 :]
        words = ['python', f'tools/{name}.py', *rest]
    return words


def tool_of(words):
    """Return the name of the tool that a command calls, if it calls one."""
    found = [re.fullmatch(r'tools/(?:dev/)?(\w+)\.py', word) for word in words[:2]]
    return next((match[1] for match in found if match), None)


def check_command(example, command):
    page, words = page_of(example), words_of(command)
    tool = tool_of(words)
    may_run = tool in QUICK_TOOLS or (page in RUN_PAGES and tool in SMALL)
    if page in RUN_ELSEWHERE:
        assert_is_a_test_of(page)
    elif words[0] == 'make':
        make(words)
    elif words[0] in NOT_HERE:
        section = example.document.text[: example.start].rsplit('\n#', 1)[1]
        assert re.search('not run', section, re.IGNORECASE), 'its section must say "not run"'
    elif words[1:2] and words[1] in RUN_ELSEWHERE:
        assert_is_a_test_of(words[1])
    elif may_run and not USAGE.search(command):
        run_tool(tool, words)
    else:
        parse(example, command)


def make(words):
    command = ['make', '-n', *words[1:]]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)


def run_tool(tool, words):
    """Run a tool in this process as the command says, smaller by what ``SMALL`` says."""
    words = [*words, *SMALL.get(tool, [])]
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


def parse(example, command):
    """Check a command without running it."""
    words, is_usage = words_of(command), bool(USAGE.search(command))
    program, *rest = words
    if program == 'python' and rest[0] == '-m':
        assert importlib.util.find_spec(rest[1]), f'no module {rest[1]}'
    elif program == 'python' and rest[0] == '-c':
        run_imports(rest[1])
    elif program == 'python' and tool_of(words) and is_usage:
        parse_usage(command)
    elif program == 'python' and tool_of(words):
        check_arguments(parse_tool(rest)[0])
    elif program.startswith('tools/dist_') and is_usage:
        assert os.access(program, os.X_OK)
    elif program.startswith('tools/dist_'):
        parse_launcher(words)
    elif program == 'pip':
        parse_pip(rest)
    elif program == 'apt-get':
        assert rest[0] == 'install' and 'python3-venv' in rest
    elif program == 'git':
        known = subprocess.run(['git', '--list-cmds=main'], capture_output=True, text=True)
        assert rest[0] in known.stdout.split(), f'git has no {rest[0]}'
    elif importlib.metadata.entry_points(group='console_scripts', name=program):
        pass  # a program of an installed package; its flags are not looked at
    elif program == '.':
        environment = rest[0].partition('/')[0]
        assert words == ['.', f'{environment}/bin/activate']
        assert environment == '.venv' or f'python -m venv {environment}\n' in example.parsed
    else:
        assert words == ['cd', 'evit_mm'], 'unknown command'


def run_imports(code):
    """Run the imports of a line of Python, and know the names that it calls."""
    tree = ast.parse(code)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    scope = {}
    exec(compile(ast.Module(imports, []), 'sentence', 'exec'), scope)
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert all(name in scope or name == 'print' for name in calls)


def parse_tool(words):
    """Let a tool's own parser read a command; return what it read, and the parser."""
    namespace = runpy.run_path(str(ROOT / words[0]), run_name='tool')
    if 'parse_args' not in namespace:
        assert len(words) == 1, f'{words[0]} takes no arguments'
        return argparse.Namespace(), argparse.ArgumentParser()
    parsers, said = [], io.StringIO()

    def recorded(plain):
        def recording(parser, *args, **kwargs):
            parsers.append(parser)
            return plain(parser, *args, **kwargs)

        return recording

    with arguments(words), pytest.MonkeyPatch.context() as patch:
        for method in ('parse_args', 'parse_intermixed_args'):
            plain = getattr(argparse.ArgumentParser, method)
            patch.setattr(argparse.ArgumentParser, method, recorded(plain))
        try:
            with contextlib.redirect_stderr(said):
                return namespace['parse_args'](), parsers[-1]
        except SystemExit:
            raise AssertionError(said.getvalue()) from None


def parse_usage(command):
    """Check the part without brackets as a command, and every flag within them by its name."""
    plain = [PLACEHOLDERS.get(word, word) for word in shlex.split(USAGE.sub('', command))]
    _, parser = parse_tool(plain[1:])
    for bracket in USAGE.findall(command):
        words = bracket.strip('[]').split()
        for flag, value in zip(words, [*words[1:], ''], strict=True):
            if flag.startswith('-'):
                assert flag in parser._option_string_actions, f'no option {flag}'
                choices = parser._option_string_actions[flag].choices
                if choices and '|' in value:
                    assert set(value.split('|')) == set(choices), f'{flag} takes {choices}'


def parse_launcher(words):
    """Run the real launcher with ``echo`` as Python, then parse what it would have started."""
    environment = {**os.environ, 'PYTHON': 'echo'}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    started = shlex.split(done.stdout)
    tool = next(i for i, word in enumerate(started) if word.endswith('.py'))
    launched = started[tool].rsplit('/tools/')[-1]
    check_arguments(parse_tool([f'tools/{launched}', *started[tool + 1 :]])[0])


def parse_pip(words):
    """Check that extras and files of requirements exist."""
    assert words[0] == 'install'
    setup = (ROOT / 'setup.py').read_text()
    for word in words[1:]:
        for extra in re.findall(r'\[([\w,-]+)\]', word):
            for name in extra.split(','):
                assert re.search(rf"'{name}'[:\]]", setup), f'no extra {name}'
        if word.endswith('.txt'):
            assert (ROOT / word).is_file(), f'no {word}'


def check_arguments(args):
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
        known = importlib.import_module('evit_mm.compare').available_models()
        assert name in known or timm.is_model(name.removeprefix('timm:'))
    for name in values.get('suites') or []:
        assert name in importlib.import_module('evit_mm.compare.benchmark').SUITES


def assert_is_a_field(cfg, key):
    """A dotted key leads through the config to a field, or to an argument of what is built."""
    *way, last = key.split('.')
    node = cfg
    for step in way:
        node = node[int(step)] if step.isdigit() else node[step]
    assert last in node or ('type' in node and last in arguments_of(node['type'])), (
        f'--cfg-options {key}: no such field'
    )


def arguments_of(name):
    """Return the arguments of a registered class and of its bases."""
    registries = vars(importlib.import_module('mmdet.registry')).values()
    found = (r.get(name) for r in registries if isinstance(r, Registry))
    cls = next(x for x in found if x is not None)
    return {arg for base in cls.__mro__ for arg in inspect.signature(base.__init__).parameters}
