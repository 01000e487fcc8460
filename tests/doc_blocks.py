"""Every code block of the pages, and how it is tested: ``python -m tests.doc_blocks`` counts them.

Kinds, from the strongest:

- run: as it is printed, in a temporary copy; ``SMALL`` says what is made smaller,
- built: a config that is read and whose model is built,
- parsed: a command that needs COCO, GPUs or hours; its own parser reads it, its files exist and
  load, its overrides name fields that exist,
- dry run: ``make -n``,
- not run: needs a program that is not here, and its section says "not run",
- text, directive: no code; a block without a language is text, and its first line no command;
  directives are built with the site.

A block of another language, or with a command that none of these knows, is an error.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]

# pages whose python and bash blocks another test runs, which is not done twice
RUN_ELSEWHERE = {
    'docs/your_data.md': 'test_docs.py::test_your_data_page_on_the_blood_cells',
    'docs/your_detector.md': 'test_drop_in.py::test_every_block_of_the_page_is_tested',
    'docs/checkpoints.md': 'test_checkpoint_docs.py::test_the_pages_commands_and_snippets',
}
# scripts that another test runs
SCRIPTS_ELSEWHERE = {
    'examples/onnx_numpy.py': 'test_export.py::test_the_example_needs_numpy_and_onnxruntime_alone'
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
CODE = ('python', 'bash')
# in usage lines: words that stand for something
PLACEHOLDERS = {'N': '1', 'GPUS': '2', 'WxH': '320x240', 'H': '320', 'W': '320'}
USAGE = re.compile(r'\[[^\]]*\]|\.\.\.')


@dataclass(frozen=True)
class Block:
    """A fenced or indented block: its page, from the root, its line, language and text."""

    page: str
    line: int
    language: str
    text: str

    @property
    def is_config(self) -> bool:
        """Whether it is a config rather than a script."""
        return self.text.startswith('_base_ =')


@dataclass(frozen=True)
class Item:
    """What is to be done with a block, or with one command of it."""

    block: Block
    kind: str
    command: str = ''
    by: str = ''

    @property
    def words(self) -> list[str]:
        """The command as the shell would split it, its environment and srun's part left out."""
        words = shlex.split(self.command, comments=True)
        while words and re.match(r'[A-Z_]+=', words[0]):
            words.pop(0)
        if words[:1] == ['srun']:
            words = words[words.index('python') :]
        if 'evit_mm' in words[:-1]:  # python -m evit_mm NAME, evit_mm NAME: tools/NAME.py
            name, *rest = words[words.index('evit_mm') + 1 :]
            words = ['python', f'tools/{name}.py', *rest]
        return words

    @property
    def tool(self) -> str | None:
        """The name of the tool that it calls, if it calls one."""
        found = [re.fullmatch(r'tools/(\w+)\.py', word) for word in self.words[:2]]
        return next((match[1] for match in found if match), None)

    @property
    def is_usage(self) -> bool:
        """Whether it stands for many commands, with parts in brackets."""
        return bool(USAGE.search(self.command))


def pages() -> list[Path]:
    """Return every page that is written for people."""
    found = [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')]
    return sorted(p for p in found if '_build' not in p.parts)


def read_blocks(path: Path) -> list[Block]:
    """Return a page's blocks in their order."""
    page = path.relative_to(ROOT).as_posix()
    tokens = MarkdownIt('commonmark').parse(path.read_text(encoding='utf-8'))
    return [
        Block(page, token.map[0] + 1, token.info.strip() or token.type, token.content)
        for token in tokens
        if token.type in ('fence', 'code_block')
    ]


def inline_commands(path: Path) -> list[Item]:
    """Return the commands that stand within a page's sentences."""
    page = path.relative_to(ROOT).as_posix()
    items = []
    for token in MarkdownIt('commonmark').enable('table').parse(path.read_text(encoding='utf-8')):
        for child in token.children or []:
            text = ' '.join(child.content.split())
            if child.type == 'code_inline' and re.match(r'python (tools/|-c )|make \w', text):
                kind = 'dry run' if text.startswith('make') else 'parsed'
                block = Block(page, (token.map or [0])[0] + 1, 'inline', text)
                items.append(Item(block, kind, text))
    return items


def commands(block: Block) -> list[str]:
    """Return a shell block's commands, continued lines joined, chains taken apart."""
    lines = re.split(r'\n| && ', re.sub(r'\\\n\s*', ' ', block.text))
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith('#')]


def plan(block: Block) -> Iterator[Item]:
    """Say how a block is tested."""
    elsewhere = RUN_ELSEWHERE.get(block.page)
    if block.language.startswith('{') and block.language.endswith('}'):
        yield Item(block, 'directive')
    elif block.language in ('text', 'fence', 'code_block'):
        yield Item(block, 'text')
    elif block.language in CODE and elsewhere:
        # mmsegmentation is not here: its channels are compared, no more
        kind = 'parsed' if "'mmseg::" in block.text else 'run'
        for command in [''] if block.language == 'python' else commands(block):
            yield Item(block, kind, command, elsewhere)
    elif block.language == 'python':
        yield Item(block, 'built' if block.is_config else 'run')
    elif block.language == 'bash':
        for command in commands(block):
            yield plan_command(block, command)
    else:
        yield Item(block, f'unknown language {block.language!r}')


def plan_command(block: Block, command: str) -> Item:
    """Say how one command is tested."""
    item = Item(block, 'parsed', command)
    program, *rest = item.words or ['']
    if program == 'make':
        return Item(block, 'dry run', command)
    if program in NOT_HERE:
        return Item(block, 'not run', command)
    if rest and rest[0] in SCRIPTS_ELSEWHERE:
        return Item(block, 'run', command, SCRIPTS_ELSEWHERE[rest[0]])
    chosen = item.tool in QUICK_TOOLS or (block.page in RUN_PAGES and item.tool in SMALL)
    if chosen and not item.is_usage:
        return Item(block, 'run', command)
    return item


def count() -> dict[str, Counter[str]]:
    """Return for each page how many blocks and commands are tested in which way."""
    counts = {}
    for path in pages():
        items = [item for block in read_blocks(path) for item in plan(block)]
        items += [Item(i.block, f'{i.kind}, in a sentence') for i in inline_commands(path)]
        if items:
            page = path.relative_to(ROOT).as_posix()
            counts[page] = Counter(item.kind for item in items)
    return counts


if __name__ == '__main__':
    found = count()
    for page, kinds in found.items():
        print(f'{page}: ' + ', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items())))
    total = sum(found.values(), Counter())
    print('in all: ' + ', '.join(f'{n} {kind}' for kind, n in total.most_common()))
