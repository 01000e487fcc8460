"""How Sphinx builds the site: ``make docs``. Needs no network, nor do the pages that come out."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / '_ext')]

from evit_mm import __version__  # noqa: E402

project = 'evit_mm'
author = 'The evit_mm authors'
version = release = __version__

extensions = [
    'myst_parser',
    'sphinx.ext.napoleon',
    'autoapi.extension',
    'repository_pages',
]
exclude_patterns = ['_build', '_ext', '_static']

myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 3  # as the git host has them
smartquotes_action = 'q'  # two dashes are an option more often than a dash
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # else a field has two entries, its own and the one of its class

# the pages of docs/api are written from the sources, without importing them
autoapi_dirs = [str(HERE.parent / 'evit_mm')]
autoapi_root = 'api'
autoapi_add_toctree_entry = False  # docs/api.md has it
autoapi_member_order = 'bysource'
autoapi_options = ['members', 'undoc-members', 'show-inheritance', 'imported-members']
suppress_warnings = [
    'autoapi.python_import_resolution',  # names that a line unpacks have no entry of their own
    'ref.python',  # an alias in a signature may have the name of a class elsewhere
]
python_maximum_signature_line_length = 88

# a public name of this package must lead somewhere; other packages' would need their inventories
nitpicky = True
nitpick_ignore_regex = [
    ('py:(class|obj|exc)', r'(?!evit_mm\b).*'),
    ('py:.*', r'(?!evit_mm\b)\w+\..*'),
]

html_theme = 'furo'
html_title = f'evit_mm {version}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_favicon = '_static/icon.svg'
html_copy_source = False
html_show_search_summary = False  # would fetch the pages, which browsers refuse from a disk
html_show_copyright = False


# a function that has its module's name, and one that is defined for old and new PyTorch
TWICE = ('evit_mm.compare.collect', 'evit_mm.deploy.export.graph.nms_mask')


def setup(app):
    """Leave out what would have two entries under one name."""
    app.connect(
        'autoapi-skip-member',
        lambda _app, what, name, *_: (what != 'module' and name in TWICE) or None,
    )
