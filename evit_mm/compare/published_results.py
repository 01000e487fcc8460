"""Published figures of the backbones in the comparison, read from ``results.yml``.

These figures are from the papers. They were not measured in this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Published:
    """Published figures of one backbone.

    Attributes:
        label: Display name.
        macs: Multiply-adds of the classifier at 224 px, which the papers call FLOPs, or None if
            they are unknown.
        params: Number of parameters of the classifier, or None if it is unknown.
        coco: AP, AP50, AP75, AP small, AP medium and AP large in percent, on COCO val2017 with
            RetinaNet after 12 epochs. Unpublished figures are left out.
    """

    label: str
    macs: float | None
    params: float | None
    coco: tuple[float, ...]


def read_results() -> dict[str, Any]:
    """Return the contents of ``results.yml``, which documents its format in comments."""
    return yaml.safe_load(Path(__file__).with_name('results.yml').read_text(encoding='utf-8'))


_results = read_results()
# key: NAME in configs/retinanet_NAME_coco.py
PUBLISHED = {
    name: Published(
        row['label'],
        row.get('macs'),
        row.get('params'),
        tuple(_results['configs'][f'retinanet_{name}_coco'].get('published', {}).get('box', ())),
    )
    for name, row in _results['backbones'].items()
}
# key: timm's name of the network; value: the same NAME
TIMM_NAMES = {row['timm']: name for name, row in _results['backbones'].items() if 'timm' in row}


def label_of(name: str) -> str:
    """Return the display name of a row of a table, or its name if ``results.yml`` has none.

    A row is a backbone with RetinaNet, or NAME of another ``configs/NAME_coco.py``.
    """
    network = _timm_network(name)
    if network:
        return label_of(TIMM_NAMES[network]) if network in TIMM_NAMES else f'{network} (timm)'
    title = _results['configs'].get(f'{name}_coco', {}).get('title', name)
    return PUBLISHED[name].label if name in PUBLISHED else title


def coco_of(name: str, kind: str = 'box') -> tuple[float, ...]:
    """Return the published COCO metrics of a row, or nothing if they are unknown.

    Args:
        name: As in :func:`label_of`.
        kind: ``'box'``, as in :attr:`Published.coco`, or ``'mask'``: AP, AP50 and AP75.
    """
    network = _timm_network(name)
    if network and network not in TIMM_NAMES:
        published = _results['timm'].get(network, {}).get('published', {})
        return () if 'mask' in published else tuple(published.get('box', ()))
    name = TIMM_NAMES.get(network, name)
    if name in PUBLISHED:
        return PUBLISHED[name].coco if kind == 'box' else ()
    return tuple(_results['configs'].get(f'{name}_coco', {}).get('published', {}).get(kind, ()))


def _timm_network(name: str) -> str:
    """Return NAME of ``timm:NAME.TAG``, or an empty string for another row."""
    return name.removeprefix('timm:').partition('.')[0] if name.startswith('timm:') else ''
