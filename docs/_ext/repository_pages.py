"""Let the pages read the same on the git host and on the site.

- ``docs/changelog.md`` is a line with a link there; here it is the root's file itself, and every
  link to such a file leads to its page.
- ``docs/NAME/*``, such as tables that commands wrote, are the children of ``docs/NAME.md``; the
  ones that begin without a heading have a title from ``TITLES``, and a picture of a page's name is
  shown below it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

SHOWN = {'changelog': 'CHANGELOG.md', 'contributing': 'CONTRIBUTING.md'}
PAGES = {**{file: page for page, file in SHOWN.items()}, 'README.md': 'index'}
TITLES = {
    'comparison/table': 'Comparison of the backbones on the blood cells',
    'recipes/bccd': 'Comparison of recipes on the blood cells',
}
CHILDREN = '\n\n```{{toctree}}\n:hidden:\n:glob:\n\n{name}/*\n```\n'


def adapt(app: Any, docname: str, source: list[str]) -> None:
    """Change a page's text before it is parsed."""
    text, docs = source[0], Path(app.srcdir)
    if docname in SHOWN:
        file = docs.parent / SHOWN[docname]
        app.env.note_dependency(str(file))
        # what the root calls docs/x.md or y is x.md or ../y from here
        text = re.sub(r'\]\((?![a-z]+:|#)', '](../', file.read_text(encoding='utf-8'))
        text = text.replace('](../docs/', '](')
    for file_name, page in PAGES.items():
        text = re.sub(rf'\]\((?:\.\./)+{re.escape(file_name)}', f'](/{page}.md', text)
    if '/' in docname and text.startswith('|'):
        text = f'# {TITLES[docname]}\n\n{text}'
    picture = (docs / docname).with_suffix('.png')
    if '/' in docname and picture.is_file():
        text += f'\n![The same as a picture]({picture.name})\n'
    if any(path.suffix in app.config.source_suffix for path in (docs / docname).glob('*')):
        text += CHILDREN.format(name=Path(docname).name)
    source[0] = text


def setup(app: Any) -> dict[str, bool]:
    """Tell Sphinx when to call what stands above."""
    app.connect('source-read', adapt)
    return {'parallel_read_safe': True}
