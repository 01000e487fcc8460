"""COCO files under other names than COCO's own, for example those of Roboflow.

Roboflow writes ``train/_annotations.coco.json`` and ``valid/_annotations.coco.json`` beside the
images, CVAT ``annotations/instances_default.json``, Label Studio ``result.json`` and FiftyOne
``labels.json`` beside ``data/``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..coco import read_coco, rotation_of
from ..images import some, with_slashes
from .samples import Content, Sample, Source, split_in_name, split_of

LOOKED = 'annotations/instances_train.json or train/_annotations.coco.json (COCO)'


def is_coco(content: Any) -> bool:
    """Return whether the content of a JSON file is COCO's."""
    return isinstance(content, Mapping) and {'images', 'annotations', 'categories'} <= set(content)


def has_usual_name(file: Path) -> bool:
    """Return whether COCO, CVAT or Roboflow names its annotation files like this."""
    return file.name.startswith('instances_') or file.name == '_annotations.coco.json'


def own_file(files: Sequence[Path], split: str) -> Path | None:
    """Return the file of a split that is named as COCO names it, if there is one."""
    names = (f'annotations/instances_{split}.json', f'annotations/instances_{split}2017.json')
    return next((Path(name) for name in names if Path(name) in files), None)


def choose(files: list[Path]) -> list[Path]:
    """Return the files with COCO's own names, else all but those of tests.

    Files without a split, such as ``trainval``, count only if no file is for training.
    """
    chosen = [found for split in ('train', 'val') if (found := own_file(files, split))]
    if chosen:
        return chosen
    chosen = [file for file in files if split_of_file(file) != 'test']
    divided = [file for file in chosen if split_of_file(file)]
    return divided if any(split_of_file(file) == 'train' for file in divided) else chosen


def split_of_file(file: Path) -> str:
    """Return the split of an annotation file, from its folder or its name."""
    return split_of(file) or split_in_name(file.stem)


def read(source: Source, files: list[Path]) -> Content:
    """Read annotation files, and leave out a grouping class."""
    content = Content()
    read_files: dict[Path, dict[str, Any]] = {}
    for file in files:
        split = split_of_file(file)
        same = next((other for other in read_files if split_of_file(other) == split), None)
        if same is not None:
            raise DataError(
                f"'{source.root}' has several annotation files for the same split ('{same}', "
                f"'{file}'); keep one of them"
            )
        read_files[file] = read_coco(source.root / file)
    grouping = grouping_classes(list(read_files.values()))
    categories = [(c['id'], c['name']) for coco in read_files.values() for c in coco['categories']]
    content.classes = list(dict.fromkeys(name for key, name in categories if key not in grouping))
    for name in grouping.values():
        source.notes.add('classes without boxes that only group others were left out', name)
    for file, coco in read_files.items():
        _add_images(content, coco, file, source)
    return content


def grouping_classes(contents: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
    """Return id and name of the classes without boxes that only group the other classes.

    Roboflow adds the name of its project as class 0, the supercategory of all others.
    """
    used = {a['category_id'] for coco in contents for a in coco['annotations']}
    categories = [c for coco in contents for c in coco['categories']]
    return {
        c['id']: c['name']
        for c in categories
        if c['id'] not in used
        and any(c['name'] == o.get('supercategory') and c['id'] != o['id'] for o in categories)
    }


def _add_images(content: Content, coco: Mapping[str, Any], file: Path, source: Source) -> None:
    path = source.root / file
    names = {category['id']: category['name'] for category in coco['categories']}
    samples: dict[Any, Sample] = {}
    missing: list[str] = []
    named: dict[Path, str] = {}
    for image in coco['images']:
        name = image['file_name']
        image_file = _image(source, file, name)
        if image_file is None:
            missing.append(name)
            continue
        if named.setdefault(image_file, name) != name:
            raise DataError(
                f"'{path}': the images '{named[image_file]}' and '{name}' are both found as "
                f"'{image_file}'; put the images into the folders that the file names"
            )
        source.reads(image_file)
        samples[image['id']] = Sample(image_file, (image['width'], image['height']))
        content.add(split_of_file(file), samples[image['id']], file)
    lost = [name for name in missing if len(source.named.find(name)) < 2]
    if lost:
        raise DataError(
            f"{len(lost)} of {len(coco['images'])} images of '{path}' do not exist ({some(lost)}); "
            f"put them into '{_folder(named) or source.root / 'images' / split_of_file(file)}'"
        )
    if missing:
        raise DataError(
            f"'{path}': the image '{missing[0]}' can be {some(source.named.find(missing[0]))}; put "
            'the images into the folders that the file names'
        )
    for annotation in coco['annotations']:
        found = {k: v for k, v in annotation.items() if k not in ('id', 'image_id', 'category_id')}
        found['name'] = names[annotation['category_id']]
        if not isinstance(found.get('segmentation', []), (list, dict)):
            raise DataError(f"'{path}': annotation {annotation['id']} has no valid segmentation")
        degrees = rotation_of(annotation)
        if degrees:
            x, y, w, h = annotation['bbox']
            place = f'annotation {annotation["id"]}'
            x1, y1, x2, y2 = source.upright((x, y, x + w, y + h), degrees, place)
            found.update(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1))
            found['attributes'] = {**found['attributes'], 'rotation': 0}
        samples[annotation['image_id']].objects.append(found)


def _folder(named: Mapping[Path, str]) -> Path | None:
    """Return the folder that most images are in, given the path and the name of each."""
    ends = [(path.as_posix(), f'/{with_slashes(name)}') for path, name in named.items()]
    folders = Counter(path.removesuffix(end) for path, end in ends if path.endswith(end))
    return Path(folders.most_common(1)[0][0]) if folders else None


def image_folders(file: Path) -> list[Path]:
    """Return the folders where the images of an annotation file usually are."""
    stem, split, images = file.stem.removeprefix('instances_'), split_of_file(file), Path('images')
    beside = [file.parent, file.parent / 'data', file.parent / 'images']
    usual = [Path(stem), images / stem, Path(split), images / split, images, Path()]
    return [*dict.fromkeys([*beside, *usual, images / 'default'])]


def _image(source: Source, file: Path, name: str) -> Path | None:
    for written in dict.fromkeys((name, with_slashes(name))):
        for folder in image_folders(file):
            path = source.root / folder / written
            if path.is_file():
                return path if written == name else source.found(name, path)
    return source.find(name, file, split_of_file(file))
