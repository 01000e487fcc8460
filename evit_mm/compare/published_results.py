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
        macs: Multiply-adds of the classifier at 224 px, which the papers call FLOPs.
        params: Number of parameters of the classifier.
        coco: AP, AP50, AP75, AP small, AP medium and AP large in percent, on COCO val2017 with
            RetinaNet after 12 epochs. Unpublished figures are left out.
    """

    label: str
    macs: float
    params: float
    coco: tuple[float, ...]


def read_results() -> dict[str, Any]:
    """Return the contents of ``results.yml``, which documents its format in comments."""
    return yaml.safe_load(Path(__file__).with_name('results.yml').read_text(encoding='utf-8'))


_results = read_results()
# key: NAME in configs/retinanet_NAME_coco.py
PUBLISHED = {
    name: Published(
        row['label'],
        float(row['macs']),
        float(row['params']),
        tuple(_results['configs'][f'retinanet_{name}_coco'].get('published', {}).get('box', ())),
    )
    for name, row in _results['backbones'].items()
}
# key: timm's name of the network; value: the same NAME
TIMM_NAMES = {row['timm']: name for name, row in _results['backbones'].items() if 'timm' in row}


def label_of(name: str) -> str:
    """Return the display name of a backbone, or its name if ``results.yml`` does not have it."""
    if name.startswith('timm:'):
        network = name.removeprefix('timm:')
        return label_of(TIMM_NAMES[network]) if network in TIMM_NAMES else f'{network} (timm)'
    return PUBLISHED[name].label if name in PUBLISHED else name
