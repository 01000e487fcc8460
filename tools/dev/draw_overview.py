"""Draw the picture of the README: detections on an image, and AP against cost.

python tools/dev/draw_overview.py CONFIG CHECKPOINT IMAGE -o docs/images/overview.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from evit_mm import Detector
from evit_mm.compare.published_results import PUBLISHED, read_results
from evit_mm.errors import EvitError

ROOT = Path(__file__).resolve().parents[2]
OURS, OTHERS = '#1f6feb', '#8c959f'
COLORS = ('#d1242f', '#1f6feb', '#1a7f37')


def draw_detections(ax: Axes, config: str, checkpoint: str, image: str, score: float) -> None:
    """Draw the boxes of a detector."""
    found = Detector(checkpoint, config, 'cpu')(image)
    ax.imshow(Image.open(image).convert('RGB'))
    used = {}
    for index in np.flatnonzero(found.scores >= score):
        x1, y1, x2, y2 = found.boxes[index]
        color = COLORS[found.labels[index] % len(COLORS)]
        patch = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linewidth=1.6)
        used[found.names[index]] = ax.add_patch(patch)
    ax.legend(used.values(), used.keys(), loc='lower right', fontsize=8, framealpha=0.9)
    ax.set_title(read_results()['configs'][Path(config).stem]['title'].split(' (')[0], fontsize=10)
    ax.axis('off')


def draw_points(ax: Axes, points: list[tuple[str, float, float]], xlabel: str, title: str) -> None:
    """Draw named points, EfficientViT in its own colour."""
    for name, x, ap in points:
        ours = name.startswith('EfficientViT')
        ax.plot(x, ap, 'o', color=OURS if ours else OTHERS, markersize=9 if ours else 7)
        style = {'ha': 'center', 'fontsize': 8, 'weight': 'bold' if ours else 'normal'}
        ax.annotate(name, (x, ap), (0, 8), textcoords='offset points', **style)
    ax.set(xlabel=xlabel, ylabel='AP')
    ax.set_title(title, fontsize=10)
    ax.margins(0.22, 0.15)
    ax.grid(alpha=0.25)
    ax.spines[['top', 'right']].set_visible(False)


def read(page: str) -> dict[str, Any]:
    """Read the JSON file of a page."""
    return json.loads((ROOT / 'docs' / page).read_text(encoding='utf-8'))


def name_of(run: dict[str, Any]) -> str:
    """Return a backbone's name, with its epochs if it did not finish."""
    name = PUBLISHED[run['model']].label
    return name if run['epochs'] == run['of'] else f'{name} ({run["epochs"]} epochs)'


def main() -> None:
    """Draw the three panels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('image')
    parser.add_argument('-o', '--out', required=True)
    parser.add_argument('--score', type=float, default=0.4)
    args = parser.parse_args()
    if Path(args.config).stem not in read_results()['configs']:
        parser.error(f'{args.config} is not in evit_mm/compare/results.yml')
    _, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13, 3.9), width_ratios=(1.25, 1, 1), layout='constrained'
    )
    try:
        draw_detections(left, args.config, args.checkpoint, args.image, args.score)
    except (EvitError, OSError) as error:
        parser.error(str(error))
    published = [
        (row.label, row.macs / 1e6, row.coco[0])
        for row in PUBLISHED.values()
        if row.coco and row.macs
    ]
    draw_points(
        middle, published, 'multiply-adds of the backbone, M', 'COCO, RetinaNet (published AP)'
    )
    macs = {row['name']: row['macs'] / 1e9 for row in read('comparison/table.json')['rows']}
    measured = [
        (name_of(run), macs[run['model']], 100 * run['metrics']['bbox_mAP'])
        for run in read('performance/gpu.json')['trainings']
    ]
    title = 'Blood cells, 30 epochs, one seed (measured on an H100)'
    draw_points(right, measured, 'multiply-adds of the detector, G', title)
    plt.savefig(args.out, dpi=110)


if __name__ == '__main__':
    main()
