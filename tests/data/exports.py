"""Write a COCO data set in the forms that annotation programs export."""

import json
import os
import random
import shutil
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr


def coco_of(root, split):
    return json.loads((root / 'annotations' / f'instances_{split}.json').read_text())


def pictures(root, split):
    """Yield each image with its objects: (image, [(class name, class index, box), ...])."""
    coco = coco_of(root, split)
    names = {c['id']: (c['name'], k) for k, c in enumerate(coco['categories'])}
    for image in coco['images']:
        own = [a for a in coco['annotations'] if a['image_id'] == image['id']]
        yield image, [(*names[a['category_id']], a['bbox']) for a in own]


def copy(root, image, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(root / 'images' / image['file_name'], target)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def class_names(root):
    return [c['name'] for c in coco_of(root, 'train')['categories']]


def yolo(root, out, folders=('train', 'val')):
    """images/train beside labels/train, with all digits of the fractions."""
    for split, folder in zip(('train', 'val'), folders, strict=True):
        for image, objects in pictures(root, split):
            name = Path(image['file_name'])
            copy(root, image, out / 'images' / folder / name)
            w, h = image['width'], image['height']
            lines = [
                f'{k} {(x + bw / 2) / w!r} {(y + bh / 2) / h!r} {bw / w!r} {bh / h!r}'
                for _, k, (x, y, bw, bh) in objects
            ]
            write(out / 'labels' / folder / name.with_suffix('.txt').name, '\n'.join(lines))
    names = '\n'.join(f'  {k}: {json.dumps(n)}' for k, n in enumerate(class_names(root)))
    train, val = (f'images/{folder}' for folder in folders)
    write(out / 'data.yaml', f'path: .\ntrain: {train}\nval: {val}\nnames:\n{names}\n')


def darknet(root, out):
    """obj.data with lists of images, and labels beside the images: YOLO 1.1 of CVAT."""
    yolo(root, out, folders=('train', 'valid'))
    for split in ('train', 'valid'):
        (out / 'images' / split).rename(out / f'obj_{split}_data')
        for label in (out / 'labels' / split).iterdir():
            label.rename(out / f'obj_{split}_data' / label.name)
        images = [f for f in sorted((out / f'obj_{split}_data').iterdir()) if f.suffix != '.txt']
        write(out / f'{split}.txt', ''.join(f'data/obj_{split}_data/{f.name}\n' for f in images))
    (out / 'data.yaml').unlink()
    write(out / 'obj.names', ''.join(f'{name}\n' for name in class_names(root)))
    lines = ['classes = 3', *(f'{split} = data/{split}.txt' for split in ('train', 'valid'))]
    write(out / 'obj.data', '\n'.join([*lines, 'names = data/obj.names', 'backup = backup/\n']))


def voc_xml(image, objects, difficult=0):
    boxes = ''.join(
        f'<object><name>{escape(n)}</name><difficult>{difficult}</difficult><bndbox>'
        f'<xmin>{x!r}</xmin><ymin>{y!r}</ymin><xmax>{x + w!r}</xmax><ymax>{y + h!r}</ymax>'
        '</bndbox></object>'
        for n, _, (x, y, w, h) in objects
    )
    return (
        f'<annotation><filename>{escape(image["file_name"])}</filename><size><width>'
        f'{image["width"]}</width><height>{image["height"]}</height><depth>3</depth></size>'
        f'{boxes}</annotation>'
    )


def voc(root, out):
    """Annotations, JPEGImages and the lists of ImageSets/Main."""
    for split in ('train', 'val'):
        stems = []
        for image, objects in pictures(root, split):
            stem = Path(image['file_name']).stem
            stems.append(stem)
            copy(root, image, out / 'JPEGImages' / image['file_name'])
            write(out / 'Annotations' / f'{stem}.xml', voc_xml(image, objects))
        write(out / 'ImageSets' / 'Main' / f'{split}.txt', '\n'.join(stems) + '\n')


def voc_folders(root, out):
    """A folder per split with the XML files beside the images, as Roboflow writes it."""
    for split, folder in (('train', 'train'), ('val', 'valid')):
        for image, objects in pictures(root, split):
            name = Path(image['file_name'])
            copy(root, image, out / folder / name)
            write(out / folder / f'{name.stem}.xml', voc_xml(image, objects))


def cvat(root, out):
    """One annotations.xml with subsets."""
    labels = ''.join(f'<label><name>{escape(n)}</name></label>' for n in class_names(root))
    images = ''
    for split, subset in (('train', 'Train'), ('val', 'Validation')):
        for image, objects in pictures(root, split):
            copy(root, image, out / 'images' / subset / image['file_name'])
            boxes = ''.join(
                f'<box label={quoteattr(n)} xtl="{x!r}" ytl="{y!r}" xbr="{x + w!r}" ybr="{y + h!r}"'
                ' occluded="0" z_order="0"></box>'
                for n, _, (x, y, w, h) in objects
            )
            images += (
                f'<image id="{image["id"]}" name={quoteattr(image["file_name"])} subset="{subset}" '
                f'width="{image["width"]}" height="{image["height"]}">{boxes}</image>'
            )
    meta = f'<meta><task><labels>{labels}</labels></task></meta>'
    write(
        out / 'annotations.xml', f'<annotations><version>1.1</version>{meta}{images}</annotations>'
    )


def labelme(root, out):
    """A folder per split with the JSON files beside the images; corners in any order."""
    rng = random.Random(0)
    for split in ('train', 'val'):
        for image, objects in pictures(root, split):
            name = Path(image['file_name'])
            copy(root, image, out / split / name)
            shapes = []
            for label, _, (x, y, w, h) in objects:
                points = [[x, y], [x + w, y + h]]
                rng.shuffle(points)
                shapes.append({'label': label, 'points': points, 'shape_type': 'rectangle'})
            content = {
                'version': '5.4.1',
                'flags': {},
                'shapes': [{**s, 'group_id': None, 'flags': {}} for s in shapes],
                'imagePath': str(name),
                'imageData': None,
                'imageHeight': image['height'],
                'imageWidth': image['width'],
            }
            write(out / split / f'{name.stem}.json', json.dumps(content))


def label_studio(root, out):
    """One JSON per split with percentages; uploaded names with their prefix."""
    for split in ('train', 'val'):
        tasks = []
        for number, (image, objects) in enumerate(pictures(root, split), 1):
            copy(root, image, out / split / image['file_name'])
            w, h = image['width'], image['height']
            result = [
                {
                    'id': f'r{k}',
                    'type': 'rectanglelabels',
                    'from_name': 'label',
                    'to_name': 'image',
                    'original_width': w,
                    'original_height': h,
                    'image_rotation': 0,
                    'value': {
                        'x': 100 * x / w,
                        'y': 100 * y / h,
                        'width': 100 * bw / w,
                        'height': 100 * bh / h,
                        'rotation': 0,
                        'rectanglelabels': [label],
                    },
                }
                for k, (label, _, (x, y, bw, bh)) in enumerate(objects)
            ]
            uploaded = f'{number:08x}-{image["file_name"]}'
            tasks.append(
                {
                    'id': number,
                    'annotations': [{'id': number, 'was_cancelled': False, 'result': result}],
                    'file_upload': uploaded,
                    'data': {'image': f'/data/upload/1/{uploaded}'},
                    'predictions': [],
                }
            )
        write(out / f'{split}.json', json.dumps(tasks))


def roboflow(root, out):
    """A COCO file beside the images of each split, with the project as class 0."""
    for split, folder in (('train', 'train'), ('val', 'valid')):
        coco = coco_of(root, split)
        for image in coco['images']:
            copy(root, image, out / folder / image['file_name'])
        group = {'id': 0, 'name': 'blood', 'supercategory': 'none'}
        coco['categories'] = [group] + [{**c, 'supercategory': 'blood'} for c in coco['categories']]
        write(out / folder / '_annotations.coco.json', json.dumps(coco))


WRITERS = (yolo, darknet, voc, voc_folders, cvat, labelme, label_studio, roboflow)


def small_set(source, out, number=6):
    """Write the first images of a data set as a COCO data set of its own."""
    for split in ('train', 'val'):
        coco = coco_of(source, split)
        coco['images'] = coco['images'][:number]
        ids = {image['id'] for image in coco['images']}
        coco['annotations'] = [a for a in coco['annotations'] if a['image_id'] in ids]
        for image in coco['images']:
            target = out / 'images' / image['file_name']
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / 'images' / image['file_name'], target)
        write(out / 'annotations' / f'instances_{split}.json', json.dumps(coco))
    return out
