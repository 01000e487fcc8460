"""Draw the built-in data set of shapes in COCO format. The same seed gives the same images.

The data set has five classes of textured shapes on textured backgrounds. The shapes overlap and
have small, medium and large areas as defined by COCO. Some images have a crowd of tiny shapes,
marked ``iscrowd``, and some images have no object. Boxes, masks and areas cover the visible pixels.

Masks are bool ``(H, W)``, images are uint8 ``(H, W, 3)`` in BGR, and sizes are in pixels.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from rich.progress import track

from ..errors import DataError
from ..utils.files import read_json_dict

SHAPE_CLASSES = ('circle', 'square', 'triangle', 'star', 'cross')
HUES = (0, 210, 50, 120, 285)  # degrees; objects have saturated colours, backgrounds do not
# Area of each shape as a fraction of the square of its diameter.
FILLS = (0.785, 0.5, 0.325, 0.33, 0.5)
# Areas in pixels. COCO defines small as below 32^2 and large as above 96^2.
AREAS = {'small': (450, 1000), 'medium': (1500, 8000), 'large': (9500, 14000)}
EMPTY_SHARE = 0.05
CROWD_SHARE = 0.08
MIN_VISIBLE = 0.8  # minimum visible fraction of each object


def make_shapes(
    root: str | Path,
    num_train: int = 480,
    num_val: int = 120,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
    quiet: bool = False,
) -> Path:
    """Draw the data set, unless the folder already contains the same one.

    Args:
        root: Folder to create, with ``train/``, ``val/`` and
            ``annotations/instances_{train,val}.json``.
        num_train: Number of training images.
        num_val: Number of validation images.
        size: Width and height of an image, at least 32.
        seed: Random seed.
        quiet: Whether to hide the progress bar.

    Returns:
        The folder.

    Raises:
        DataError: ``root`` contains something else, or an argument is out of range.
    """
    root = Path(root).absolute()
    if num_train < 1 or num_val < 1 or min(size) < 32 or seed < 0:
        raise DataError(
            'shapes: use at least one image per split, a size of at least 32x32 pixels and a seed '
            f'of at least 0; got {num_train} training and {num_val} validation images, size '
            f'{size[0]}x{size[1]}, seed {seed}'
        )
    # increase the version if the drawing changes, so that old folders are not reused
    settings = {'version': 1, 'train': num_train, 'val': num_val, 'size': list(size), 'seed': seed}
    if root.exists():
        if _settings_of(root) == settings:
            return root
        if not root.is_dir() or any(root.iterdir()):
            raise DataError(
                f"'{root}' exists, but not as a data set with these settings; remove it or choose "
                'another folder'
            )
    root.parent.mkdir(parents=True, exist_ok=True)
    # draw into a temporary folder and rename it at the end, so that no partial data set remains
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}.', dir=root.parent) as folder:
        part = _draw(Path(folder) / root.name, settings, quiet)
        if root.exists():
            root.rmdir()
        part.rename(root)
    return root


def _draw(part: Path, settings: dict[str, Any], quiet: bool) -> Path:
    size, seed = settings['size'], settings['seed']
    for split in ('train', 'val'):
        count = settings[split]
        (part / split).mkdir(parents=True)
        (part / 'annotations').mkdir(exist_ok=True)
        coco: dict[str, Any] = {
            'info': {'description': 'drawn shapes of evit_mm', 'settings': settings},
            'images': [],
            'annotations': [],
            'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(SHAPE_CLASSES)],
        }
        for index in track(range(count), description=f'drawing {split}', disable=quiet):
            rng = np.random.default_rng([seed, split == 'val', index])
            image, annotations = draw_image(rng, size)
            name = f'{index + 1:06d}.jpg'
            cv2.imwrite(str(part / split / name), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
            coco['images'].append(
                {'id': index + 1, 'file_name': name, 'width': size[0], 'height': size[1]}
            )
            for annotation in annotations:
                identity = {'id': len(coco['annotations']) + 1, 'image_id': index + 1}
                coco['annotations'].append({**identity, **annotation})
        (part / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))
    return part


def draw_image(rng: Generator, size: tuple[int, int]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return an image and its COCO annotations, without ``id`` and ``image_id``."""
    width, height = size
    grounds = [
        _color(rng.uniform(0, 360), rng.uniform(0, 0.3), rng.uniform(0.2, 0.9)) for _ in 'ab'
    ]
    image = _texture(rng, height, width, *grounds)
    owner = np.zeros((height, width), np.int32)  # number of the object at each pixel, 0 background
    objects: list[dict[str, int]] = []  # areas before other objects cover them
    if rng.random() >= EMPTY_SHARE:
        # draw large objects first, so that they do not cover small ones
        names = ['large'] * rng.integers(0, 4) + ['medium'] * rng.integers(0, 3)
        names += ['small'] * rng.integers(0, 3)
        names = names or ['medium']
        for name in names:
            category = int(rng.integers(len(SHAPE_CLASSES)))
            diameter = np.sqrt(rng.uniform(*AREAS[name]) / FILLS[category])
            mask = _place(rng, owner, [o['area'] for o in objects], category, diameter)
            if mask is not None:
                _paint(rng, image, mask, category)
                objects.append({'category': category, 'area': int(mask.sum()), 'iscrowd': 0})
                owner[mask] = len(objects)
        if rng.random() < CROWD_SHARE:
            category = int(rng.integers(len(SHAPE_CLASSES)))
            mask = _crowd(rng, owner, image, category)
            if mask.any():
                objects.append({'category': category, 'area': int(mask.sum()), 'iscrowd': 1})
                owner[mask] = len(objects)
    noise = rng.normal(0, 6, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    annotations = [
        _annotation(owner == number, shape['category'], shape['iscrowd'])
        for number, shape in enumerate(objects, start=1)
    ]
    return image, annotations


def shape_mask(
    category: int, center: tuple[float, float], diameter: float, angle: float, size: tuple[int, int]
) -> np.ndarray:
    """Return the mask ``(H, W)`` of one shape.

    ``diameter`` is the diameter of the circumscribed circle. ``angle`` is in radians.
    """
    canvas = np.zeros((size[1], size[0]), np.uint8)
    radius = diameter / 2
    name = SHAPE_CLASSES[category]
    if name == 'circle':
        turns, radii = np.linspace(0, 2 * np.pi, 48, endpoint=False), np.array([1.0])
    elif name == 'star':
        turns, radii = np.arange(10) * np.pi / 5, np.array([1.0, 0.45])
    elif name == 'cross':  # a plus sign with three corners per arm
        half = np.arctan(1 / 3)
        turns = (np.arange(4)[:, None] * np.pi / 2 + [-half, half, np.pi / 4]).ravel()
        radii = np.array([1.0, 1.0, np.sqrt(0.2)])
    else:
        corners = {'square': 4, 'triangle': 3}[name]
        turns, radii = np.arange(corners) * 2 * np.pi / corners, np.array([1.0])
    radii = radius * np.resize(radii, turns.shape)
    points = np.stack([np.cos(turns + angle), np.sin(turns + angle)], 1) * radii[:, None] + center
    cv2.fillPoly(canvas, [np.round(points * 16).astype(np.int32)], 1, shift=4)
    return canvas.astype(bool)


def _place(
    rng: Generator, owner: np.ndarray, full_areas: list[int], category: int, diameter: float
) -> np.ndarray | None:
    """Return the mask of a new object that keeps the others visible, or None on failure."""
    height, width = owner.shape
    diameter = min(diameter, 0.85 * min(height, width))
    for _ in range(20):
        center = rng.uniform(diameter * 0.4, [width - diameter * 0.4, height - diameter * 0.4])
        mask = shape_mask(category, tuple(center), diameter, rng.uniform(0, 6.28), (width, height))
        remaining = np.bincount(owner[~mask], minlength=len(full_areas) + 1)[1:]
        if mask.any() and np.all(remaining >= MIN_VISIBLE * np.array(full_areas)):
            return mask
    return None


def _crowd(rng: Generator, owner: np.ndarray, image: np.ndarray, category: int) -> np.ndarray:
    """Paint a group of tiny shapes of one class on the background and return its mask."""
    height, width = owner.shape
    heap = np.zeros((height, width), bool)
    middle = rng.uniform(0.2, 0.8, 2) * [width, height]
    for _ in range(int(rng.integers(8, 16))):
        center = middle + rng.normal(0, 0.07, 2) * min(height, width)
        angle, diameter = rng.uniform(0, 6.28), rng.uniform(10, 16)
        mask = shape_mask(category, tuple(center), diameter, angle, (width, height)) & (owner == 0)
        _paint(rng, image, mask, category)
        heap |= mask
    return heap


def _paint(rng: Generator, image: np.ndarray, mask: np.ndarray, category: int) -> None:
    """Fill the mask with a texture in a saturated colour close to the colour of the class."""
    if not mask.any():
        return
    ys, xs = np.nonzero(mask)
    window = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    image, mask = image[window], mask[window]
    hue = (HUES[category] + rng.normal(0, 8)) % 360
    low, high = (_color(hue, rng.uniform(0.6, 1), v) for v in rng.uniform([0.4, 0.75], [0.7, 1]))
    image[mask] = _texture(rng, *mask.shape, low, high)[mask]


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    """Convert hue in degrees, saturation and value in 0 to 1, to BGR in 0 to 255."""
    hsv = np.array([[[hue, saturation, value]]], np.float32)
    return 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0]


def _texture(
    rng: Generator, height: int, width: int, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Return stripes, checks, blobs or a gradient between two colours, ``(H, W, 3)`` float32."""
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 40)
    along = (xs * np.cos(angle) + ys * np.sin(angle)) * 2 * np.pi / period
    across = (ys * np.cos(angle) - xs * np.sin(angle)) * 2 * np.pi / period
    kind = rng.integers(4)
    if kind == 0:
        pattern = np.sin(along)
    elif kind == 1:
        pattern = np.sign(np.sin(along) * np.sin(across))
    elif kind == 2:
        coarse = rng.normal(size=(max(height // 16, 2), max(width // 16, 2))).astype(np.float32)
        pattern = np.tanh(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    else:
        pattern = np.sin(along * period / (2 * max(height, width)))
    mix = 0.5 + 0.45 * pattern[..., None]
    return (low * (1 - mix) + high * mix).astype(np.float32)


def _annotation(mask: np.ndarray, category: int, iscrowd: int) -> dict[str, Any]:
    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    box = [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1]
    if iscrowd:
        segmentation: Any = {'size': list(mask.shape), 'counts': _run_lengths(mask)}
    else:
        kind = cv2.RETR_EXTERNAL
        contours, _ = cv2.findContours(mask.astype(np.uint8), kind, cv2.CHAIN_APPROX_SIMPLE)
        # a polygon needs three points, but the contour of one or two pixels has fewer
        segmentation = [c.ravel().tolist() for c in contours if len(c) >= 3]
    return {
        'category_id': category + 1,
        'bbox': box,
        'area': int(mask.sum()),
        'segmentation': segmentation,
        'iscrowd': iscrowd,
    }


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Return COCO's uncompressed RLE: run lengths in column order, starting with zeros."""
    flat = np.concatenate([[False], mask.ravel(order='F')])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def _settings_of(root: Path) -> dict[str, Any] | None:
    """Return the settings of the shapes data set in a folder, or None for any other folder."""
    info = read_json_dict(root / 'annotations' / 'instances_val.json').get('info')
    return info.get('settings') if isinstance(info, dict) else None
