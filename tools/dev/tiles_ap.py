"""Measure what tiles do for small objects in a large image: python tools/dev/tiles_ap.py RUN.

RUN is the work dir of a training. The program joins validation images of one size into one image,
whose annotations are known, and prints the AP with and without tiles, beside the AP of the single
images.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evit_mm import Detector
from evit_mm.inference import Detections
from evit_mm.runner.work_dir import config_and_checkpoint
from evit_mm.utils.cli import run_tool
from evit_mm.utils.text import markdown_table


def join(coco: COCO, folder: Path, across: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return one image ``(H, W, 3)`` of ``across * across`` images, and its annotations."""
    size = next((x['height'], x['width']) for x in coco.dataset['images'])
    alike = [x for x in coco.dataset['images'] if (x['height'], x['width']) == size]
    joined = np.zeros((across * size[0], across * size[1], 3), np.uint8)
    annotations = []
    for place, image in zip(range(across**2), cycle(alike), strict=False):
        top, left = place // across * size[0], place % across * size[1]
        pixels = cv2.imread(str(folder / image['file_name']))
        joined[top : top + size[0], left : left + size[1]] = pixels
        for found in coco.imgToAnns[image['id']]:
            x, y, *sides = found['bbox']
            moved = {'id': len(annotations) + 1, 'image_id': 1, 'bbox': [x + left, y + top, *sides]}
            annotations.append({**found, **moved})
    return joined, annotations


def average_precision(
    coco: COCO, detections: dict[int, Detections], classes: Sequence[str]
) -> float:
    """Return the AP of all detections, however many an image has."""
    rows = [
        {'image_id': image, 'category_id': coco.getCatIds([name])[0], 'score': float(score)}
        | {'bbox': [float(x) for x in (*box[:2], *(box[2:] - box[:2]))]}
        for image, found in detections.items()
        for box, score, name in zip(found.boxes, found.scores, found.names, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(rows), 'bbox')
        evaluation.params.imgIds = list(detections)
        evaluation.params.catIds = [coco.getCatIds([name])[0] for name in classes]
        evaluation.params.maxDets = [max(map(len, detections.values()))]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, :, 0]
    return float(precision[precision > -1].mean())


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='AP of a large image with and without tiles')
    parser.add_argument('run', type=Path, metavar='RUN', help='work dir of a training')
    parser.add_argument('--tile', type=int, nargs='+', required=True, help='sides in pixels')
    parser.add_argument('--across', type=int, default=10, help='images in a row (default: 10)')
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    args = parse_args()
    config, checkpoint = config_and_checkpoint(args.run)
    detector = Detector(checkpoint, config)
    dataset: Any = detector.cfg.val_dataloader.dataset
    root = Path(dataset.data_root)
    with contextlib.redirect_stdout(io.StringIO()):
        single, whole = COCO(str(root / dataset.ann_file)), COCO()
    folder = root / dataset.data_prefix.img
    image, annotations = join(single, folder, args.across)
    whole.dataset = {
        **single.dataset,
        'images': [{'id': 1, 'height': image.shape[0], 'width': image.shape[1]}],
        'annotations': annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        whole.createIndex()
    rows = []

    def measure(name: str, coco: COCO, detect: Callable[[], dict[int, Detections]]) -> None:
        start = time.perf_counter()
        found = detect()
        seconds = time.perf_counter() - start
        ap = average_precision(coco, found, detector.classes)
        rows.append([name, f'{ap:.3f}', str(sum(map(len, found.values()))), f'{seconds:.1f}'])

    files = {x['id']: folder / x['file_name'] for x in single.dataset['images']}
    measure('single images', single, lambda: {k: detector(v) for k, v in files.items()})
    measure('joined', whole, lambda: {1: detector(image)})
    for tile in args.tile:
        name = f'joined, tiles of {tile}'
        measure(name, whole, lambda tile=tile: {1: detector(image, tile=tile, batch_size=8)})
    height, width = image.shape[:2]
    print(f'\n{len(annotations)} objects in an image of {width}x{height}, from {len(files)} images')
    print(*markdown_table(['input', 'AP', 'detections', 'seconds'], rows), sep='\n')


if __name__ == '__main__':
    run_tool(main)
