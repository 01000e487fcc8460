"""The table of all configs: what each costs, what is published of it, what was measured here.

Nothing in it is typed by hand. Parameters and multiply-adds are counted from the config's model;
what is published, and whether it was run here, is what the config's docstring says; a figure
measured here is read from the log of the training.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .compare.complexity import count_macs, count_parameters, detector_macs
from .errors import ConfigError

# headings of the page, each with the end of its configs' names
SECTIONS = {
    'Detection on COCO': '_coco',
    'Classification on ImageNet-1k': '_imagenet',
    'Small data sets, from scratch': '',
}

HEAD = """# Model table

Written by `python tools/model_table.py`: sizes are counted from the configs, what is published is
what each config's docstring quotes, and what was run here is read from its log.
**Published figures were not measured here**; COCO and ImageNet: not run."""
FOOT = """Parameters are those of the whole model, multiply-adds (which papers call FLOPs) those of
one image of the size that the config tests on. The backbones alone, published beside counted:
[complexity](complexity.md).
"""
# logs in docs/logs, by config
LOGS = {'retinanet_evit_m4_shapes': 'shapes.log', 'retinanet_evit_m4_bccd': 'bccd.log'}


@dataclass(frozen=True)
class ModelRow:
    """One config.

    Attributes:
        name: The config's stem.
        title: What the config is, the first line of its docstring.
        size: ``(width, height)`` of the images that it is tested on, with their padding where the
            network does not take them without.
        params: Parameters of the whole model.
        macs: Its multiply-adds for one image of ``size``.
        published: What the docstring says is published, empty where nothing is.
        here: What the docstring says of runs here: ``'not run'``, or where it is told.
    """

    name: str
    title: str
    size: tuple[int, int]
    params: int
    macs: int
    published: str
    here: str


def read_row(config: str | Path) -> ModelRow:
    """Count a config's model and read its docstring.

    Args:
        config: Config of a detector or of a classifier.

    Raises:
        ConfigError: The config cannot be read or counted, or its docstring does not say whether it
            was run here.
    """
    from mmengine.registry import MODELS, init_default_scope

    from .runner.build import config_faults
    from .runner.config import load_config

    title, published, here = read_docstring(Path(config))
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    steps = {step['type'].split('.')[-1]: step for step in cfg.test_dataloader.dataset.pipeline}
    with config_faults(cfg), torch.device('meta'):  # shapes alone: no weights are drawn
        model = MODELS.build(cfg.model).eval()
    if 'Resize' in steps:
        size, macs = _count_detector(model, tuple(steps['Resize']['scale']))
    else:
        side = steps['CenterCrop']['crop_size']
        size = (side, side)
        macs = count_macs(model.to('meta'), torch.empty(1, 3, side, side, device='meta'))
    return ModelRow(Path(config).stem, title, size, count_parameters(model), macs, published, here)


def _count_detector(model: Any, size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    try:
        return size, sum(detector_macs(model, size[1], size[0]).values())
    except RuntimeError:
        # a neck that joins maps of neighbouring strides takes nothing but padded images
        divisor = model.data_preprocessor.pad_size_divisor
        width, height = (-(-side // divisor) * divisor for side in size)
        return (width, height), sum(detector_macs(model, height, width).values())


def read_docstring(config: Path) -> tuple[str, str, str]:
    """Return a config's title, what it says is published, and what it says of runs here.

    Raises:
        ConfigError: It has no docstring, or the docstring does not say whether it was run.
    """
    text = ast.get_docstring(ast.parse(config.read_text(encoding='utf-8'))) or ''
    title, _, rest = text.partition('\n')
    sentences = re.split(r'(?<=\.)\s+(?=[A-Z])', ' '.join(rest.split()))
    published = [x for x in sentences if x.startswith('Published')]
    run = [x for x in sentences if re.match('Here: |Measured here', x)]
    if not run:
        raise ConfigError(
            f'{config}: the docstring does not say whether it was run; '
            "add 'Here: not run on ...' or 'Measured here: see docs/PAGE.md'"
        )
    here = 'not run' if run[0].startswith('Here: not run') else run[0].removesuffix('.')
    said = published[0].removesuffix('.') if published else ''
    return title.removesuffix('.'), re.sub('^Published(: )?', '', said).strip(), here


def last_ap(log: Path) -> float:
    """Return the AP of a log's last evaluation, 0 to 1.

    Raises:
        ConfigError: The log has none.
    """
    found = re.findall(r'coco/bbox_mAP: (\S+)', log.read_text(encoding='utf-8'))
    if not found:
        raise ConfigError(f'{log}: no evaluation in this log')
    return float(found[-1])


def as_page(rows: Sequence[ModelRow], docs: Path) -> str:
    """Return the page ``docs/models.md``.

    Args:
        rows: One per config, in the order in which they are to stand.
        docs: The folder that the page is for; it has the logs of :data:`LOGS` in ``logs/``.
    """
    lines = [HEAD]
    left = list(rows)
    for heading, end in SECTIONS.items():
        chosen = [row for row in left if row.name.endswith(end)]
        left = [row for row in left if row not in chosen]
        if chosen:
            lines += ['', f'## {heading}', '', *_table(chosen, docs)]
    return '\n'.join([*lines, '', FOOT])


def _table(rows: Sequence[ModelRow], docs: Path) -> list[str]:
    columns = ['config', 'what it is', 'image', 'params M', 'multiply-adds G', 'published', 'here']
    lines = [f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}']
    for row in rows:
        log = LOGS.get(row.name)
        if log:
            here = f'AP {last_ap(docs / "logs" / log):.3f} ([log](logs/{log}))'
        else:
            here = re.sub(r'docs/(\w+)\.md', r'[\1](\1.md)', row.here)
        cells = [
            f'[{row.name}](../configs/{row.name}.py)',
            # the heading names the data, and the config the recipe
            re.sub(r',? on (COCO|ImageNet-1k)( with the authors.*| at .*|[,;].*)?', '', row.title),
            f'{row.size[0]}x{row.size[1]}',
            f'{row.params / 1e6:.2f}',
            f'{row.macs / 1e9:.2f}',
            row.published or '-',
            here,
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return lines
