"""What papers print about the backbones of the comparison; read from ``results.yml`` beside this.

None of these figures was measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Published:
    """What the papers print about one backbone.

    Attributes:
        label: Name for people.
        macs: Multiply-adds of the classifier at 224 px, which the papers call FLOPs.
        params: Parameters of the classifier.
        coco: AP, AP50, AP75, AP small, medium and large on COCO val2017 with RetinaNet and 12
            epochs, as far as they are published; in percent.
    """

    label: str
    macs: float
    params: float
    coco: tuple[float, ...]


def read_results() -> dict[str, Any]:
    """Return what ``results.yml`` holds; its comments say what each part is."""
    return yaml.safe_load(Path(__file__).with_name('results.yml').read_text(encoding='utf-8'))


_results = read_results()
# By the NAME in configs/retinanet_NAME_coco.py.
PUBLISHED = {
    name: Published(
        row['label'],
        float(row['macs']),
        float(row['params']),
        tuple(_results['configs'][f'retinanet_{name}_coco'].get('published', {}).get('box', ())),
    )
    for name, row in _results['backbones'].items()
}
# the same NAME, by timm's name of the network
TIMM_NAMES = {row['timm']: name for name, row in _results['backbones'].items() if 'timm' in row}


def label_of(name: str) -> str:
    """Return a backbone's name for people, or the name itself where it is not in the table."""
    return PUBLISHED[name].label if name in PUBLISHED else name
