"""Every format gives the same boxes and the same AP as COCO, and errors name file and place."""

import errno
import json
import os
import random
import re
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evit_mm.data import formats
from evit_mm.data.layout import find_data
from evit_mm.errors import DataError
from tests.data import exports


@pytest.fixture(scope='module')
def cells(real_data, tmp_path_factory):
    """All blood cells in COCO's form, on the file system of the tests."""
    copy = tmp_path_factory.mktemp('cells') / 'coco'
    return shutil.copytree(real_data('bccd'), copy)


def truth(ann_file):
    """Return the objects of each image, by the names that all formats share."""
    coco = json.loads(Path(ann_file).read_text())
    names = {c['id']: c['name'] for c in coco['categories']}
    images = {i['id']: (Path(i['file_name']).name, i['width'], i['height']) for i in coco['images']}
    found = {image: [] for image in images.values()}
    for a in coco['annotations']:
        found[images[a['image_id']]].append((names[a['category_id']], a['bbox'], a['iscrowd']))
    return {image: sorted(objects) for image, objects in found.items()}


def figures(ann_file, seed=0):
    """Return pycocotools' figures of made-up detections, which depend only on names and boxes."""
    coco = COCO(str(ann_file))
    label = {c['name']: c['id'] for c in coco.loadCats(coco.getCatIds())}
    detections = []
    for number, image in sorted((Path(i['file_name']).name, k) for k, i in coco.imgs.items()):
        rng = random.Random(f'{seed} {number}')
        boxes = coco.loadAnns(coco.getAnnIds(image))
        for box in sorted(a['bbox'] for a in boxes):
            for name in sorted(label):
                moved = [v + rng.gauss(0, 4) for v in box]
                detections.append(
                    {
                        'image_id': image,
                        'category_id': label[name],
                        'bbox': moved[:2] + [max(v, 1) for v in moved[2:]],
                        'score': rng.random(),
                    }
                )
    evaluation = COCOeval(coco, coco.loadRes(detections), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.fixture(scope='module')
def expected(cells):
    return figures(cells / 'annotations' / 'instances_val.json')


@pytest.mark.parametrize('writer', exports.WRITERS, ids=lambda writer: writer.__name__)
def test_boxes_and_ap_equal_those_of_coco(writer, cells, expected, tmp_path):
    writer(cells, tmp_path / 'set')
    data = find_data(tmp_path / 'set')
    for name, split in (('train', data.train), ('val', data.val)):
        assert truth(split.ann_file) == truth(cells / 'annotations' / f'instances_{name}.json')
        assert sorted(split.classes) == ['Platelets', 'RBC', 'WBC']
        assert split.first_image.is_file() and split.sizes[0] == (640, 480)
    found = figures(data.val.ann_file)
    assert 0.05 < expected[0] < 0.9
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


# --- small folders, one per question


def picture(path, width=40, height=30):
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(path.suffix.lower(), np.full((height, width, 3), 90, np.uint8))
    assert ok
    path.write_bytes(data)
    return path


def boxes(split):
    """Return name and box of all objects, by image name."""
    return {
        image[0]: [(n, b) for n, b, _ in found] for image, found in truth(split.ann_file).items()
    }


def yolo(root, yaml='names: [cat, dog]', line='0 0.5 0.5 0.25 0.2', suffix='.jpg'):
    """A cat in the middle of each of two images per split: [15, 12, 10, 6]."""
    for split in ('train', 'val'):
        for index in range(2):
            picture(root / 'images' / split / f'{split}{index}{suffix}')
            exports.write(root / 'labels' / split / f'{split}{index}.txt', line)
    exports.write(root / 'data.yaml', f'train: images/train\nval: images/val\n{yaml}\n')
    return root


CAT = ('cat', [15, 12, 10, 6])
BOX = '<box label="cat" xtl="15" ytl="12" xbr="25" ybr="18"/>'
SHAPE = {'label': 'cat', 'points': [[25, 18], [15, 12]], 'shape_type': 'rectangle'}
WRITTEN_BEAR = 'B\u00e4r'
BEAR = unicodedata.normalize('NFD', WRITTEN_BEAR)  # on the disk of a Mac


def only(found):
    """Return the objects that all images have."""
    first, *others = found.values()
    assert all(other == first for other in others)
    return first


def said(root):
    """Return the error for a folder, without its path."""
    with pytest.raises(DataError) as caught:
        find_data(root)
    message = str(caught.value)
    assert '\n' not in message
    return message.replace(str(root), 'DIR')


@pytest.mark.parametrize(
    ('names', 'classes'),
    [
        ('names: [cat, dog]', ('cat', 'dog')),
        ('names: {0: cat, 1: dog}', ('cat', 'dog')),
        ("names:\n  1: 'no'\n  0: cat", ('cat', 'no')),
        ('names:\n- cat\n- no', ('cat', 'no')),  # plain YAML reads False
        ('names: [cat, großer Hund, 01]', ('cat', 'großer Hund', '01')),
    ],
)
def test_yolo_names_are_kept_as_they_are_written(names, classes, tmp_path):
    data = find_data(yolo(tmp_path, names))
    assert data.format == 'YOLO' and data.train.classes == data.val.classes == classes
    assert boxes(data.val) == {'val0.jpg': [CAT], 'val1.jpg': [CAT]} and data.notes == ()


@pytest.mark.parametrize(
    ('train', 'number'),
    [
        ('train: [images/train, more]', 3),
        ('train:\n- images/train\n- more', 3),
        ('train: list.txt', 2),
        ('path: .\ntrain: images/train', 2),
        ('path: /nowhere/on/this/machine\ntrain: images/train', 2),
        ('path: ../datasets/set\ntrain: images/train', 2),
        ('train: ../images/train', 2),  # Roboflow
        ('train: images\\train', 2),
        ('path: ABSOLUTE\ntrain: images/train', 2),
        ('train: ABSOLUTE/images/train', 2),
    ],
)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_yolo_splits_are_folders_lists_or_lists_of_folders(train, number, encoding, tmp_path):
    root = yolo(tmp_path / 'set')
    picture(root / 'more' / 'train9.jpg')
    exports.write(root / 'more' / 'train9.txt', '1 0.5 0.5 0.25 0.2\r\n\r\n')
    lines = ['./images/train/train0.jpg', '.\\images\\train\\train1.jpg', '']
    (root / 'list.txt').write_text('\r\n'.join(lines), encoding=encoding)
    text = f'{train}\nval: images/val\nnames: [cat, dog]\n'.replace('ABSOLUTE', str(root))
    (root / 'data.yaml').write_text(text.replace('\n', '\r\n'), encoding=encoding)
    found = boxes(find_data(root).train)
    assert len(found) == number and found['train0.jpg'] == found['train1.jpg'] == [CAT]
    assert number == 2 or found['train9.jpg'] == [('dog', CAT[1])]


def test_yolo_clutter_of_other_systems_changes_nothing(tmp_path):
    root = yolo(tmp_path / 'set', suffix='.JPG')
    for name in ('._train0.JPG', '.DS_Store'):
        exports.write(root / 'images' / 'train' / name, 'Mac OS X')
        exports.write(root / 'labels' / 'train' / name, 'Mac OS X')
    exports.write(root / '._data.yaml', 'Mac OS X')
    exports.write(root / 'labels' / 'train.cache', 'Ultralytics')
    label = root / 'labels' / 'train' / 'train0.txt'
    label.write_bytes(b'\xef\xbb\xbf0 0.5 0.5 0.25 0.2\r\n \r\n')
    assert boxes(find_data(root).train) == {'train0.JPG': [CAT], 'train1.JPG': [CAT]}


def test_yolo_polygons_give_their_box_and_keep_their_outline(tmp_path):
    root = yolo(tmp_path / 'set', line='0 0.25 0.1 0.5 0.5 0.75 0.1 0.5 0.2')
    split = find_data(root).train
    assert boxes(split)['train0.jpg'] == [('cat', [10, 3, 20, 12])]
    (first, *_) = json.loads(split.ann_file.read_text())['annotations']
    assert first['segmentation'] == [[10, 3, 20, 15, 30, 3, 20, 6]]
    assert first['area'] == pytest.approx(90)  # a triangle of 120 less one of 30


def test_yolo_labels_with_keypoints_give_their_box(tmp_path):
    line = '0 0.5 0.5 0.25 0.2 0.1 0.1 2 0.9 0.9 1'  # 11 columns would be a polygon, too
    root = yolo(tmp_path / 'set', 'kpt_shape: [2, 3]\nnames: [cat, dog]', line)
    data = find_data(root)
    assert only(boxes(data.train)) == [CAT]
    assert 'segmentation' not in data.train.ann_file.read_text()
    (note,) = data.notes
    assert note.startswith('keypoints were left out: 4 (train0.txt, line 1, ')
    (root / 'labels' / 'val' / 'val1.txt').write_text('0 0.5 0.5 0.25 0.2 0.1 0.1')
    assert said(root).startswith(
        "'DIR/labels/val/val1.txt', line 1: 7 columns; by 'kpt_shape' a label has 11, class x_c"
    )
    for shape in ('23', '[17]', '[2, 4]', '[a, 3]', '{2: 3}'):
        exports.write(root / 'data.yaml', f'train: images/train\nkpt_shape: {shape}\nnames: [cat]')
        assert said(root).startswith("'DIR/data.yaml': 'kpt_shape' is ")


def test_yolo_boxes_are_in_pixels_of_the_image_as_displayed(tmp_path):
    root = yolo(tmp_path / 'set')
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / 'images' / 'train' / 'train0.jpg'
    Image.open(path).save(path, exif=exif)
    assert cv2.imread(str(path)).shape[:2] == (40, 30)
    split = find_data(root).train
    assert split.sizes[0] == (30, 40)
    assert boxes(split)['train0.jpg'] == [('cat', [11.25, 16, 7.5, 8])]


def test_yolo_images_without_labels_are_background(tmp_path):
    root = yolo(tmp_path / 'set')
    (root / 'labels' / 'train' / 'train0.txt').unlink()
    (root / 'labels' / 'train' / 'train1.txt').write_text('0 0.5 0.5 0 0.1\n0 0.5 0.5 0.25 0.2')
    data = find_data(root)
    assert boxes(data.train) == {'train0.jpg': [], 'train1.jpg': [CAT]}
    assert data.notes == (
        'images have no label file and count as background: 1 (images/train/train0.jpg)',
        'objects without area were left out: 1 (train1.txt, line 1)',
    )
    shutil.rmtree(root / 'labels')
    assert said(root).startswith("'DIR': no image has a label file; put the label of images/NAME")


@pytest.mark.parametrize(('number', 'note'), [('2', 0), ('', 0), ('5', 1), ('two', 1)])
def test_yolo_names_count_where_the_number_of_classes_differs(number, note, tmp_path):
    data = find_data(yolo(tmp_path / 'yaml', f'nc: {number}\nnames: [cat, dog]'))
    assert data.train.classes == ('cat', 'dog')
    assert data.notes == (f"'nc' of data.yaml is {number}, but the 2 'names' count",) * note
    root = darknet(tmp_path / 'darknet')
    path = root / 'obj.data'
    path.write_text(path.read_text().replace('classes = 2', f'classes = {number}'))
    found = find_data(root).notes
    assert found == (f"'classes' of obj.data is {number}, but the 2 'names' count",) * note


def darknet(root, lists=('train', 'valid'), line='data/obj_{0}_data/{0}.jpg'):
    """The folder that CVAT exports as YOLO 1.1, with four images of a cat per split."""
    about = ['classes = 2', 'names = data/obj.names', 'backup = backup/']
    for split in lists:
        lines = [line.format(f'{split}{k}').replace(f'{split}{k}_', f'{split}_') for k in range(4)]
        for number in range(4):
            image = picture(root / f'obj_{split}_data' / f'{split}{number}.jpg')
            exports.write(image.with_suffix('.txt'), '0 0.5 0.5 0.25 0.2\n')
        exports.write(root / f'{split}.txt', '\r\n'.join(lines))
        about.append(f'{split}=data/{split}.txt')
    exports.write(root / 'obj.data', '\n'.join(about))
    exports.write(root / 'obj.names', 'cat\ngroßer Hund\n\n')
    return root


def test_yolo_of_darknet_is_read(tmp_path):
    data = find_data(darknet(tmp_path / 'a'))
    assert data.format == 'YOLO' and data.val.classes == ('cat', 'großer Hund')
    assert boxes(data.val) == {f'valid{k}.jpg': [CAT] for k in range(4)} and data.notes == ()
    one = find_data(darknet(tmp_path / 'one', ['train']))
    assert one.train.num_images + one.val.num_images == 4 and one.val.num_images
    assert one.notes[0].startswith('no validation split found; ')
    far = find_data(darknet(tmp_path / 'far', line='/content/darknet/obj_{0}_data/{0}.jpg'))
    assert boxes(far.val) == boxes(data.val)
    assert far.notes[0].startswith('files were found under names with other folders: 8 (')


@pytest.mark.parametrize(
    ('file', 'text', 'message'),
    [
        ('obj.data', 'train = train.txt', "'DIR/obj.data': 'names' is missing or not a list"),
        (
            'obj.data',
            'train = a.txt\nnames = gone',
            "'DIR/obj.data': 'names' is 'gone', which does",
        ),
        ('obj.data', 'train = a\nnames = obj.names', "'DIR/obj.data': 'train' is 'a', which does"),
        ('obj.names', '\n', "'DIR/obj.data': 'names' is missing or not a list; add the class"),
        ('valid.txt', 'data/gone.jpg', "'DIR/valid.txt', line 1: image 'data/gone.jpg' does not"),
    ],
)
def test_wrong_files_of_darknet_are_named(file, text, message, tmp_path):
    exports.write(darknet(tmp_path) / file, text)
    assert said(tmp_path).startswith(message)


def test_yolo_labels_are_found_in_another_unicode_form(tmp_path):
    root = yolo(tmp_path)
    for folder, name, number in (('images', BEAR, '0.jpg'), ('labels', WRITTEN_BEAR, '0.txt')):
        file = root / folder / 'train' / f'train{number}'
        file.rename(file.with_name(f'{name}{number}'))
    (root / 'labels' / 'train' / 'train1.txt').rename(root / 'labels' / 'val' / 'train1.txt')
    data = find_data(root)
    assert boxes(data.train) == {f'{BEAR}0.jpg': [CAT], 'train1.jpg': []}  # not of another folder
    assert data.notes[0].startswith('files were found under names with another Unicode form: 1 (')
    assert data.notes[1].startswith('images have no label file and count as background: 1 (im')


LABEL = "'DIR/labels/val/val1.txt', line 2: "


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('0 .5 .5 .1 .1 .9', LABEL + '6 columns (a sixth one is the score of a detection)'),
        ('0 .5 .5 .1', LABEL + '4 columns; a label has five'),
        ('0 .5 .5 .1 .1 .2 .2 .3', LABEL + '8 columns; a label has five'),
        ('2 .5 .5 .1 .1', LABEL + 'class 2 is not one of the 2 classes 0 to 1'),
        ('-1 .5 .5 .1 .1', LABEL + 'class -1 is not one of'),
        ('0.5 .5 .5 .1 .1', LABEL + 'class 0.5 is not one of'),
        ('cat .5 .5 .1 .1', LABEL + "'cat' is not a finite number"),
        ('0 nan .5 .1 .1', LABEL + "'nan' is not a finite number"),
        ('0 20 15 8 8', LABEL + 'the coordinates 20 15 8 8 are not all from 0 to 1; divide'),
        ('0 .5 .5 -.1 .1', LABEL + 'the coordinates .5 .5 -.1 .1 are not all from 0 to 1; correct'),
        ('0 .5 .5 -.01 .1', LABEL + 'the coordinates .5 .5 -.01 .1 are not all from 0 to 1; corr'),
        ('0 .5 .5 1.2 .1', LABEL + 'the coordinates .5 .5 1.2 .1 are not all from 0 to 1; correct'),
        ('0 -.1 .5 .1 .1', LABEL + 'the coordinates -.1 .5 .1 .1 are not all from 0 to 1; correct'),
        ('0 .1 .1 .5 .1 .5 1.2', LABEL + 'the coordinates .1 .1 .5 .1 .5 1.2 are not all from 0 '),
        (
            '0,.5,.5,.1,.1',
            LABEL + '1 columns; a label has five, class x_center y_center width height, or a class '
            'and the points of a polygon; separate them with spaces',
        ),
    ],
)
def test_wrong_yolo_labels_are_named_with_file_and_line(line, message, tmp_path):
    root = yolo(tmp_path / 'set')
    (root / 'labels' / 'val' / 'val1.txt').write_text('0 .5 .5 .1 .1\n' + line)
    assert said(root).startswith(message)
    assert not list(root.glob('.evit_mm/*.json*'))


@pytest.mark.parametrize(
    ('yaml', 'message'),
    [
        ('train: [images/train', "'DIR/data.yaml' is not valid YAML (while parsing a flow seq"),
        ('- a', "'DIR/data.yaml' has no keys; it needs train, val and names"),
        ('names: [a]', "'DIR/data.yaml': 'train' is missing; add the folder of its images"),
        ('train: images/train', "'DIR/data.yaml': 'names' is missing or not a list"),
        ('train: gone\nnames: [a]', "'DIR/data.yaml': 'train' is 'gone', which does not exist; t"),
        ('train: empty\nnames: [a]', "'DIR/data.yaml': 'train' is 'empty', which has no images; "),
        ('train: data.yaml\nnames: [a]', "'DIR/data.yaml': 'train' is 'data.yaml', but it must be"),
        ('names: {0: a, 2: b}', "'DIR/data.yaml': 'names' has the keys 0, 2; number the classes"),
        ('names: [a, a]', "'DIR/data.yaml': 'names' has empty or repeated names"),
        ('train: l.txt\nnames: [a]', "'DIR/l.txt', line 1: image 'gone.jpg' does not exist"),
    ],
)
def test_wrong_yolo_files_are_named_with_the_field(yaml, message, tmp_path):
    root = yolo(tmp_path / 'set')
    (root / 'data.yaml').write_text(yaml)
    (root / 'l.txt').write_text('gone.jpg')
    (root / 'empty').mkdir()
    assert said(root).startswith(message)


def test_images_elsewhere_are_read_and_named(tmp_path):
    root = yolo(tmp_path / 'set')
    far = picture(tmp_path / 'far' / 'images' / 'far.png')
    exports.write(tmp_path / 'far' / 'labels' / 'far.txt', '1 0.5 0.5 0.25 0.2')
    (root / 'list.txt').write_text(f'{far}\nimages/train/train0.jpg\n')
    text = 'train: list.txt\nval: images/val\nnames: [cat, dog]'
    (root / 'data.yaml').write_text(text)
    data = find_data(root)
    assert boxes(data.train) == {'far.png': [('dog', CAT[1])], 'train0.jpg': [CAT]}
    assert data.notes == (f'images are outside the data folder: 1 ({far})',)
    assert data.train.first_image == far
    (tmp_path / 'far' / 'labels' / 'far.txt').write_text('0 0.5 0.5 0.25 0.2')  # also a change
    os.utime(tmp_path / 'far' / 'labels' / 'far.txt', (1, 1))
    assert boxes(find_data(root).train)['far.png'] == [CAT]


# --- Pascal VOC


def voc(root, inner='', number=6, **changes):
    """Images with a cat, and their XML files beside them."""
    for index in range(number):
        picture(root / f'{index}.jpg')
        text = exports.voc_xml(
            {'file_name': f'{index}.jpg', 'width': 40, 'height': 30}, [('cat', 0, CAT[1])]
        )
        for old, new in changes.items():
            text = text.replace(f'<{old}>', new)
        exports.write(root / f'{index}.xml', text.replace('</annotation>', f'{inner}</annotation>'))
    return root


def test_voc_difficult_objects_do_not_count_as_in_its_evaluation(tmp_path):
    root = voc(tmp_path / 'set')
    path = root / '0.xml'
    path.write_text(path.read_text().replace('<difficult>0', '<difficult>1'))
    data = find_data(root)
    crowds = {
        k[0]: [c for *_, c in v]
        for s in (data.train, data.val)
        for k, v in truth(s.ann_file).items()
    }
    assert crowds == {'0.jpg': [1]} | {f'{k}.jpg': [0] for k in range(1, 6)}
    assert 'difficult objects became crowds' in data.notes[1]


def test_voc_sizes_are_read_from_the_image_where_the_file_has_none(tmp_path):
    root = voc(tmp_path / 'set', width='<width>0</width><w>')
    for path in root.glob('*.xml'):
        path.write_text(
            path.read_text().replace('</width><depth', '</w><depth').replace('40</width>', '</w>')
        )
    data = find_data(root)
    assert {image[1:] for image in truth(data.train.ann_file)} == {(40, 30)}


def test_voc_sizes_may_be_written_as_floats(tmp_path):
    root = voc(tmp_path / 'set')
    for path in root.glob('*.xml'):
        path.write_text(path.read_text().replace('>40<', '>40.0<').replace('>30<', '>3e1<'))
    assert {image[1:] for image in truth(find_data(root).train.ann_file)} == {(40, 30)}


def test_voc_challenge_data_counts_pixels_from_one(tmp_path):
    inner = '<source><database>The VOC2007 Database</database></source>'
    data = find_data(voc(tmp_path / 'set', inner))
    assert only(boxes(data.train)) == [('cat', [14, 11, 11, 7])]
    other = find_data(voc(tmp_path / 'other', '<source><database>Unknown</database></source>'))
    assert only(boxes(other.train)) == [CAT]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda text: text[:90], "'DIR/3.xml' is not valid XML ("),
        (lambda text: text.replace('25</xmax', 'x</xmax'), "'DIR/3.xml', object 1: 'x' is not a"),
        (lambda text: text.replace('xmax', 'max'), "'DIR/3.xml', object 1: None is not a finite"),
    ],
)
def test_wrong_voc_files_are_named(change, message, tmp_path):
    root = voc(tmp_path / 'set')
    path = root / '3.xml'
    path.write_text(change(path.read_text()))
    assert said(root).startswith(message)


@pytest.mark.parametrize('files', ['0.xml', '*.xml'])
def test_voc_files_may_have_a_namespace(files, tmp_path):
    root = voc(tmp_path)
    for path in root.glob(files):
        text = path.read_text().replace('<annotation>', '<annotation xmlns="http://a.org/b">')
        path.write_text(text)
    data = find_data(root)
    assert data.train.num_images + data.val.num_images == 6
    assert only({**boxes(data.train), **boxes(data.val)}) == [CAT]


def test_voc_entities_are_not_opened(tmp_path):
    root = voc(tmp_path / 'set')
    secret = tmp_path / 'secret.txt'
    secret.write_text('secret')
    path = root / '3.xml'
    doctype = f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]>'
    path.write_text(doctype + path.read_text().replace('<name>cat', '<name>&x;'))
    assert 'secret' not in said(root).replace(str(secret), '')


def test_voc_lists_and_images_must_exist(tmp_path):
    root = tmp_path / 'set'
    voc(root / 'JPEGImages')
    (root / 'Annotations').mkdir()
    for path in (root / 'JPEGImages').glob('*.xml'):
        path.rename(root / 'Annotations' / path.name)
    lists = root / 'ImageSets' / 'Main'
    exports.write(lists / 'train.txt', '0\r\n1\r\n')
    exports.write(lists / 'val.txt', '2\n9\n')
    assert said(root).startswith(
        "'DIR/ImageSets/Main' lists 1 images without an annotation file (9)"
    )
    exports.write(lists / 'val.txt', '2\n')
    data = find_data(root)
    assert sorted(boxes(data.train)) == ['0.jpg', '1.jpg'] and sorted(boxes(data.val)) == ['2.jpg']
    (note,) = data.notes
    assert note.startswith('annotation files are in no list of ImageSets/Main: 3 (3.xml')
    (root / 'JPEGImages' / '2.jpg').unlink()
    assert said(root).startswith("'DIR/Annotations/2.xml': image '2.jpg' does not exist; put")


@pytest.mark.parametrize(
    'line',
    ['{}', '{}.jpg', '{} 1', '{}  -1', 'JPEGImages/{}', '.\\JPEGImages\\{}.jpg 1', '/a/{}.xml'],
)
@pytest.mark.parametrize('stem', ['cat 1', 'a/c.d'])
def test_voc_lists_may_name_the_image_its_folder_and_a_flag(line, stem, tmp_path):
    """Names can have spaces and dots, too."""
    for number, split in ((0, 'train'), (1, 'val')):
        name = f'{stem}{number}'
        picture(tmp_path / 'JPEGImages' / f'{name}.jpg')
        about = {'file_name': Path(f'{name}.jpg').name, 'width': 40, 'height': 30}
        text = exports.voc_xml(about, [('cat', 0, CAT[1])])
        exports.write(tmp_path / 'Annotations' / f'{name}.xml', text)
        exports.write(tmp_path / 'ImageSets/Main' / f'{split}.txt', f'{line.format(name)}\r\n\r\n')
    data = find_data(tmp_path)
    assert boxes(data.train) == {f'{Path(stem).name}0.jpg': [CAT]} and data.val.num_images == 1


# --- CVAT, LabelMe, Label Studio


def cvat(root, shapes, more=''):
    images = ''
    for index in range(6):
        picture(root / 'images' / f'{index}.jpg')
        images += f'<image id="{index}" name="{index}.jpg" width="40" height="30">{shapes}</image>'
    labels = '<label><name>dog</name></label><label><name>cat</name></label>'
    meta = f'<meta><task><labels>{labels}</labels></task></meta>'
    exports.write(root / 'annotations.xml', f'<annotations>{meta}{images}{more}</annotations>')
    return root


@pytest.mark.parametrize(
    ('shape', 'box'),
    [
        ('<box label="cat" xtl="15" ytl="12" xbr="25" ybr="18"/>', [15, 12, 10, 6]),
        ('<box label="cat" xtl="15" ytl="12" xbr="25" ybr="18" rotation="90"/>', [17, 10, 6, 10]),
        ('<polygon label="cat" points="1,2;5.5,2;5,9"/>', [1, 2, 4.5, 7]),
        ('<mask label="cat" rle="2,9,19" left="3" top="4" width="5" height="6"/>', [3, 4, 5, 6]),
        ('<ellipse label="cat" cx="9" cy="8" rx="2" ry="3"/>', [7, 5, 4, 6]),
        ('<polyline label="cat" points="1,2;5,2;5,9"/>', None),
        ('<box label="" xtl="15" ytl="12" xbr="25" ybr="18"/>', None),
        ('<box label="cat" xtl="15" ytl="12" xbr="15" ybr="18"/>', None),
    ],
)
def test_cvat_shapes_give_boxes(shape, box, tmp_path):
    always = '<box label="dog" xtl="0" ytl="0" xbr="5" ybr="5"/>'
    data = find_data(cvat(tmp_path / 'set', shape + always))
    assert data.train.classes == ('dog', 'cat')  # the order of the task
    expected = [('cat', box)] if box else []
    assert only(boxes(data.train)) == [*expected, ('dog', [0, 0, 5, 5])]
    assert len(data.notes) == 1 + (box is None or 'rotation' in shape)


def test_cvat_masks_keep_their_pixels(tmp_path):
    """CVAT counts along the rows of the box, COCO down the columns of the image."""
    runs = [2, 3, 1, 4, 0, 5, 15]
    shape = '<mask label="cat" rle="{}" left="3" top="4" width="5" height="{}"/>'
    shapes = shape.format(', '.join(map(str, runs)), 6)
    shapes += ''.join(shape.format(r, h) for r, h in (('', 6), ('3,4', 6), ('0,2000', 400)))
    data = find_data(cvat(tmp_path / 'set', shapes))
    coco = COCO(str(data.train.ann_file))
    first, *others = coco.loadAnns(coco.getAnnIds(coco.getImgIds()[0]))
    expected = np.zeros((30, 40), int)
    flat = [value for k, run in enumerate(runs) for value in [k % 2] * run]
    for k, value in enumerate(flat):
        expected[4 + k // 5, 3 + k % 5] = value
    np.testing.assert_array_equal(coco.annToMask(first), expected)
    assert first['area'] == expected.sum() == 12
    assert [other['bbox'][3] for other in others] == [6, 6, 400]
    assert not any('segmentation' in other for other in others)
    assert data.notes[1].startswith('masks do not fit into their box, and only the box is used: 18')


def test_cvat_for_video_and_missing_images_are_refused(tmp_path):
    root = cvat(tmp_path / 'set', '', '<track id="0" label="cat"/>')
    assert said(root) == (
        "'DIR/annotations.xml' is CVAT for video; export the task as 'CVAT for images 1.1'"
    )
    cvat(root, '<box label="cat" xtl="1" ytl="2"/>')
    assert said(root).startswith("'DIR/annotations.xml', image 1 '0.jpg', box 1: None is not a f")
    (root / 'images' / '0.jpg').unlink()
    assert said(root).startswith("'DIR/annotations.xml', image 1 '0.jpg' does not exist; export")


def again(root, file, old='', new=''):
    """Copy an annotation file, with a change."""
    path = root / file
    path.with_stem(f'{path.stem}-2').write_text(path.read_text().replace(old, new))
    return root


@pytest.mark.parametrize(
    ('make', 'file', 'image', 'number'),
    [
        (lambda root: cvat(root, BOX), 'annotations.xml', 'images/0.jpg', 6),
        (lambda root: labelme(root, [SHAPE]), '0.json', '0.jpg', 1),
        (voc, '0.xml', '0.jpg', 1),
    ],
    ids=['cvat', 'labelme', 'voc'],
)
def test_an_image_that_is_listed_twice_counts_once(make, file, image, number, tmp_path):
    other = file.replace('.', '-2.')
    data = find_data(again(make(tmp_path / 'same'), file))
    assert data.train.num_images + data.val.num_images == 6 and only(boxes(data.train)) == [CAT]
    start = f'images are listed again with the same objects, and count once: {number} ('
    names = f"'{other}' and '{file}'" if other < file else f"'{file}' and '{other}'"
    assert data.notes[1].startswith(f"{start}'{image}' in {names}")
    root = again(make(tmp_path / 'other'), file, 'cat', 'dog')
    message = f"'DIR': the image '{image}' is listed twice in {names}, with other objects each time"
    assert said(root) == f'{message}; keep one of them'


def labelme(root, shapes, name='{}.jpg'):
    for index in range(6):
        picture(root / f'{index}.jpg')
        content = {'shapes': shapes, 'imagePath': name.format(index), 'imageData': None}
        exports.write(root / f'{index}.json', json.dumps(content))
    return root


def test_labelme_shapes_give_boxes(tmp_path):
    kinds = [
        ('cat', [[25, 18], [15, 12]], 'rectangle', None),
        ('dog', [[1, 2], [5.5, 2], [5, 9]], 'polygon', None),
        ('sun', [[20, 10], [23, 14]], 'circle', None),
        ('bus', [[0, 0], [4, 4]], 'rectangle', 1),  # two parts of one object
        ('bus', [[6, 6], [9, 8]], 'rectangle', 1),
        ('bus', [[6, 6], [9, 8]], 'rectangle', 2),
        ('way', [[0, 0], [4, 4]], 'line', None),
    ]
    keys = ('label', 'points', 'shape_type', 'group_id')
    shapes = [dict(zip(keys, kind, strict=True)) for kind in kinds]
    root = labelme(tmp_path / 'set', shapes, 'C:\\pictures\\{}.jpg')
    data = find_data(root)
    assert only(boxes(data.train)) == [
        ('bus', [0, 0, 9, 8]),
        ('bus', [6, 6, 3, 2]),
        ('cat', [15, 12, 10, 6]),
        ('dog', [1, 2, 4.5, 7]),
        ('sun', [15, 5, 10, 10]),
    ]
    assert data.train.classes == ('bus', 'cat', 'dog', 'sun') and len(data.notes) == 2
    assert data.notes[1].startswith('LabelMe shapes of the kind line have no box and were left')
    exports.write(root / 'labels.txt', '__ignore__\n_background_\nsun\ndog\n')
    assert find_data(root).train.classes == ('sun', 'dog', 'bus', 'cat')
    (root / '2.json').write_text('{"shapes": [')
    assert said(root).startswith("'DIR/2.json' is not valid JSON (")
    (root / '2.json').write_text('{"shapes": [{"points": [1, 2]}], "imagePath": "2.jpg"}')
    assert said(root).startswith("'DIR/2.json', shape 1: 'points' is not a list of [x, y]; draw")
    (root / '1.jpg').unlink()
    assert said(root).startswith("'DIR/1.json': the image 'C:/pictures/1.jpg' of imagePath does")


def test_labelme_files_that_were_renamed_with_their_images_keep_them(tmp_path):
    root = labelme(tmp_path / 'set', [SHAPE])
    other = json.loads((root / '0.json').read_text())
    other['shapes'] = [{**SHAPE, 'label': 'dog'}]
    other['imagePath'] = '1.jpg'
    (root / '0.json').write_text(json.dumps(other))
    data = find_data(root)
    found = {**boxes(data.train), **boxes(data.val)}
    dog = [('dog', CAT[1])]
    assert found == {'0.jpg': dog} | {f'{number}.jpg': [CAT] for number in range(1, 6)}
    assert data.notes[1:] == (
        'imagePath is another image than the one beside the file, which was used: 1 '
        "('0.jpg' for '1.jpg' in 0.json)",
    )
    (root / '0.jpg').rename(root / '9.jpg')  # nothing beside the file
    (root / '0.json').write_text(json.dumps({**other, 'imagePath': '9.jpg'}))
    data = find_data(root)
    assert {**boxes(data.train), **boxes(data.val)}['9.jpg'] == dog and len(data.notes) == 1


def test_labelme_says_what_it_makes_of_turned_boxes_and_masks(tmp_path):
    corners = [[5, 0], [10, 5], [5, 10], [0, 5]]
    shapes = [
        {'label': 'cat', 'points': corners, 'shape_type': kind}
        for kind in ('rotation', 'oriented_rectangle')
    ]
    mask = {'label': 'cat', 'points': [[1, 2], [4, 4]], 'shape_type': 'mask', 'mask': 'iVBO'}
    data = find_data(labelme(tmp_path / 'set', [*shapes, mask]))
    assert only(boxes(data.train)) == [('cat', [0, 0, 10, 10])] * 2 + [('cat', [1, 2, 3, 2])]
    assert [note.partition(' (')[0] for note in data.notes[1:]] == [
        'rotated boxes were replaced by the upright box around them: 12',
        'masks gave only their box: 6',
    ]


def region(key='rectanglelabels', name='cat', size=(40, 30), **value):
    return {
        'id': 'a',
        'type': key,
        'original_width': size[0],
        'original_height': size[1],
        'value': {**value, **({key: [name]} if name else {})},
    }


RECTANGLE = {'x': 37.5, 'y': 40, 'width': 25, 'height': 20}


@pytest.mark.parametrize(
    ('result', 'expected'),
    [
        ([region(**RECTANGLE)], [CAT]),
        ([region(**RECTANGLE, rotation=90)], [('cat', [9, 12, 6, 10])]),  # about the corner
        ([region('ellipselabels', x=50, y=50, radiusX=25, radiusY=10)], [('cat', [10, 12, 20, 6])]),
        ([region('polygonlabels', points=[[0, 0], [50, 0], [0, 50]])], [('cat', [0, 0, 20, 15])]),
        ([region('rectangle', '', **RECTANGLE), region('labels', **RECTANGLE)], [CAT]),
        ([region('brushlabels', rle=[1, 2])], []),
        ([region(name='', **RECTANGLE)], []),
        ([], []),
    ],
)
def test_label_studio_regions_give_boxes(result, expected, tmp_path):
    root = tmp_path / 'set'
    other = region(name='dog', x=0, y=0, width=50, height=50)
    tasks = []
    for index in range(8):
        picture(root / 'images' / f'my {index}.jpg')
        annotations = [{'result': [{**other, 'id': 'z'}], 'was_cancelled': True}]
        annotations += [{'result': result}] if index else [{'result': [other]}]
        address = f'/data/local-files/?d=somewhere%2Fimages%2Fmy%20{index}.jpg'
        tasks.append({'id': index, 'annotations': annotations, 'data': {'photo': address}})
    tasks.append({'id': 9, 'annotations': [], 'data': {'photo': 'x.jpg'}})
    exports.write(root / 'project-1.json', json.dumps(tasks))
    data = find_data(root)
    found = {**boxes(data.train), **boxes(data.val)}
    assert found.pop('my 0.jpg') == [('dog', [0, 0, 20, 15])]
    assert len(found) == 7 and only(found) == expected
    assert 'tasks have no annotation and were left out: 1 (task 9)' in data.notes


@pytest.mark.parametrize(
    ('tasks', 'message'),
    [
        (
            [{'id': 5, 'annotations': [{'result': [region('polygonlabels', points=[1, 2])]}]}],
            "'DIR/a.json', task 5, region a: 'points' is not a list of [x, y]; correct it",
        ),
        (
            [{'id': 5, 'annotations': [{'result': [region(x=None, y=1, width=1, height=1)]}]}],
            "'DIR/a.json', task 5, region a: None is not a finite number; correct or remove the o",
        ),
        ([{'id': 5, 'annotations': 7}], "'DIR' has no images for the split 'train'; add some"),
        (
            [{'image': 'a.jpg', 'label': [{**RECTANGLE, 'original_width': 4}]}],
            "'DIR/a.json' is Label Studio's JSON-MIN; export the project as JSON",
        ),
    ],
)
def test_wrong_label_studio_files_are_named(tasks, message, tmp_path):
    picture(tmp_path / 'a.jpg')
    data = {} if 'image' in tasks[0] else {'data': {'image': 'a.jpg'}}
    exports.write(tmp_path / 'a.json', json.dumps([{**task, **data} for task in tasks]))
    assert said(tmp_path).startswith(message)


def test_label_studio_needs_its_images(tmp_path):
    task = {'id': 5, 'annotations': [{'result': []}], 'data': {'image': 's3://b/x.jpg'}}
    exports.write(tmp_path / 'a.json', json.dumps([task]))
    assert said(tmp_path).startswith("'DIR/a.json', task 5: image 'x.jpg' is not in 'DIR'; copy")


def test_label_studio_prefers_the_folder_of_the_task(tmp_path):
    tasks = []
    for number, folder in enumerate(('a', 'b')):
        size = (40 * (number + 1), 30)
        picture(tmp_path / 'images' / folder / '0.jpg', *size)
        data = {'image': f'/data/local-files/?d=somewhere/images/{folder}/0.jpg'}
        result = [region(size=size, **RECTANGLE)]
        tasks.append({'id': number, 'annotations': [{'result': result}], 'data': data})
    exports.write(tmp_path / 'a.json', json.dumps(tasks))
    data = find_data(tmp_path)
    paths = {
        image['file_name']: image['width']
        for split in (data.train, data.val)
        for image in json.loads(split.ann_file.read_text())['images']
    }
    assert paths == {'images/a/0.jpg': 40, 'images/b/0.jpg': 80}
    exports.write(tmp_path / 'a.json', json.dumps([{**tasks[0], 'data': {'image': '0.jpg'}}]))
    assert said(tmp_path) == (
        "'DIR/a.json', task 0: '0.jpg' can be images/a/0.jpg, images/b/0.jpg; keep one of them"
    )


@pytest.mark.parametrize(
    ('make', 'folders', 'note'),
    [
        (voc, ('images', 'annotations'), 'other folders'),  # as on Kaggle
        (lambda root: labelme(root, [SHAPE], 'C:\\me\\{}.jpg'), ('images', 'labels'), 'other fold'),
        (lambda root: cvat(root, BOX), (BEAR, '.'), 'another Unicode form'),
    ],
    ids=['voc', 'labelme', 'cvat'],
)
def test_images_in_another_folder_are_found_by_their_names(make, folders, note, tmp_path):
    root = make(tmp_path / 'set')
    for path in sorted(root.rglob('*.*')):
        folder = root / folders[path.suffix != '.jpg']
        folder.mkdir(exist_ok=True)
        name = path.name if folders[0] != BEAR or path.suffix != '.jpg' else BEAR + path.name
        path.rename(folder / name)
    if folders[0] == BEAR:
        path = root / 'annotations.xml'
        path.write_text(path.read_text().replace('name="', f'name="{WRITTEN_BEAR}/{WRITTEN_BEAR}'))
    data = find_data(root)
    assert data.train.num_images + data.val.num_images == 6 and only(boxes(data.train)) == [CAT]
    assert f'files were found under names with {note}' in data.notes[-1]


# --- COCO, and what holds for all


def test_a_grouping_class_is_named_and_left_out(cells, tmp_path):
    exports.roboflow(cells, tmp_path / 'set')
    data = find_data(tmp_path / 'set')
    assert data.train.classes == ('RBC', 'WBC', 'Platelets')
    (note,) = data.notes
    assert note == 'classes without boxes that only group others were left out: 1 (blood)'


def test_a_grouping_class_of_the_same_name_is_left_out(tmp_path):
    """A project "cat" with the class "cat" has two categories of this name."""
    for split, number in (('train', 2), ('valid', 1)):
        names = [picture(tmp_path / split / f'{split}{k}.jpg').name for k in range(number)]
        images = [
            {'id': k, 'file_name': name, 'width': 40, 'height': 30} for k, name in enumerate(names)
        ]
        box = {'bbox': CAT[1], 'area': 60, 'iscrowd': 0, 'category_id': 1}
        annotations = [{'id': k, 'image_id': k, **box} for k in range(number)]
        kinds = [
            {'id': k, 'name': 'cat', 'supercategory': s} for k, s in enumerate(('none', 'cat'))
        ]
        coco = {'images': images, 'annotations': annotations, 'categories': kinds}
        exports.write(tmp_path / split / '_annotations.coco.json', json.dumps(coco))
    data = find_data(tmp_path)
    assert data.train.classes == ('cat',) and boxes(data.val) == {'valid0.jpg': [CAT]}


@pytest.mark.parametrize(
    ('file', 'images'),
    [
        ('annotations/instances_default.json', 'images/default'),  # CVAT
        ('result.json', 'images'),  # Label Studio
        ('annotations/train.json', 'train'),
    ],
)
def test_one_coco_file_of_another_program_is_divided(file, images, cells, tmp_path):
    exports.write(tmp_path / file, json.dumps(exports.coco_of(cells, 'train')))
    (tmp_path / images).parent.mkdir(exist_ok=True)
    (tmp_path / images).symlink_to(cells / 'images')
    data = find_data(tmp_path)
    expected = truth(cells / 'annotations' / 'instances_train.json')
    assert {**truth(data.train.ann_file), **truth(data.val.ann_file)} == expected
    assert 0.1 < data.val.num_images / 205 < 0.3 and len(data.notes) == 1


def coco_set(root, names, files, folders=('train', 'valid')):
    """A COCO file for each split, with a cat on each image; ``{}`` becomes the split."""
    for folder in folders:
        for file in files:
            picture(root / file.format(folder))
        size = {'width': 40, 'height': 30}
        images = [{'id': k, 'file_name': n.format(folder), **size} for k, n in enumerate(names, 1)]
        about = {'category_id': 1, 'bbox': CAT[1]}
        cats = [{'id': i['id'], 'image_id': i['id'], **about} for i in images]
        coco = {'images': images, 'annotations': cats, 'categories': [{'id': 1, 'name': 'cat'}]}
        exports.write(root / folder / 'labels.json', json.dumps(coco))
    return root


@pytest.mark.parametrize(
    ('name', 'file', 'note'),
    [
        ('a{}.jpg', '{}/a{}.jpg', None),
        ('a{}.jpg', '{}/data/a{}.jpg', None),  # FiftyOne
        ('images/a{}.jpg', '{}/images/a{}.jpg', None),
        ('a{}.jpg', '{}/images/a{}.jpg', None),
        ('images/1/a{}.jpg', '{}/images/a{}.jpg', 'other folders'),  # Label Studio
        ('../images/a{}.jpg', '{}/b/a{}.jpg', 'other folders'),
        ('/home/me/{}/a{}.jpg', '{}/a{}.jpg', 'other folders'),
        ('C:\\my\\a{}.jpg', '{}/a{}.jpg', 'other folders'),
        ('a{}.jpg', 'some/where/a{}.jpg', 'other folders'),
        ('images\\a{}.jpg', '{}/images/a{}.jpg', 'slashes instead of backslashes'),
        ('images\\\\a{}.jpg', '{}/images/a{}.jpg', 'slashes instead of backslashes'),
        ('a{}.JPG', '{}/a{}.jpg', 'other upper and lower case letters'),
        ('B\u00e4r{}.jpg', f'{{}}/{BEAR}{{}}.jpg', 'another Unicode form'),
    ],
)
def test_images_of_coco_files_are_found_under_the_names_of_other_systems(
    name, file, note, tmp_path
):
    name, file = (text.replace('{}', '{0}') for text in (name, file))
    data = find_data(coco_set(tmp_path, [name], [file]))
    for split, folder in ((data.train, 'train'), (data.val, 'valid')):
        assert split.first_image == tmp_path / file.format(folder)
        assert boxes(split) == {split.first_image.name: [CAT]}
    pairs = [f"'{file.format(f)}' for '{name.format(f)}'" for f in ('train', 'valid')]
    said = f'files were found under names with {note}: 2 ({", ".join(pairs)})'
    assert data.notes == ((said,) if note else ())


def test_a_name_that_may_mean_several_images_is_refused(tmp_path):
    files = ['{}/a/x{}.jpg', '{}/b/x{}.jpg']
    with_place = [file.replace('{}', '{0}') for file in files]
    assert said(coco_set(tmp_path / 'several', ['c/x{0}.jpg'], with_place)).startswith(
        "'DIR/train/labels.json': the image 'c/xtrain.jpg' can be train/a/xtrain.jpg, "
        'train/b/xtrain.jpg; put the images into the folders that the file names'
    )
    root = coco_set(tmp_path / 'one', ['a/x{0}.jpg', 'b/x{0}.jpg'], with_place[:1])
    assert said(root).startswith(
        "'DIR/train/labels.json': the images 'a/xtrain.jpg' and 'b/xtrain.jpg' are both found as "
        "'DIR/train/a/xtrain.jpg'; put"
    )
    root = coco_set(tmp_path / 'splits', ['x.jpg'], ['train/x.jpg'])  # not one of valid
    assert said(root).startswith("1 of 1 images of 'DIR/valid/labels.json' do not exist")


def with_lists(root):
    for split, numbers in (('train', '0123'), ('val', '45')):
        exports.write(root / 'ImageSets' / 'Main' / f'{split}.txt', '\n'.join(numbers))
    return voc(root)


def with_image_lists(root):
    for split in ('train', 'val'):
        exports.write(yolo(root) / f'{split}.txt', f'images/{split}/{split}1.jpg')
    exports.write(root / 'data.yaml', 'train: train.txt\nval: val.txt\nnames: [cat, dog]')


@pytest.mark.parametrize(
    ('make', 'old', 'new', 'message'),
    [
        (lambda r: labelme(r / 'train', [SHAPE]), 'train/1.jpg', 'val/1.jpg', 'train/1.json'),
        (lambda r: labelme(r / 'train_a', [SHAPE]), 'train_a/1.jpg', 'val_a/1.jpg', 'train_a/1'),
        (lambda r: labelme(r, [SHAPE]), '1.jpg', 'test/1.jpg', '1.json'),
        (with_lists, '1.jpg', 'val/1.jpg', "1.xml': image '1.jpg' does not exist"),
        (darknet, 'obj_train_data/train1.jpg', 'obj_valid_data/train1.jpg', "train.txt', line 2"),
        (
            with_image_lists,
            'images/train/train1.jpg',
            'images/val/train1.jpg',
            "train.txt', line 1",
        ),
        # the list of val names an image of train
        (
            lambda r: exports.write(darknet(r) / 'valid.txt', 'data/obj_train_data/a.jpg'),
            'obj_valid_data/valid1.jpg',
            'obj_valid_data/a.jpg',
            "valid.txt', line 1",
        ),
        (
            lambda r: cvat(r, BOX),
            'images/1.jpg',
            'images/val2017/1.jpg',
            "annotations.xml', image 2",
        ),
        (
            lambda r: coco_set(r, ['{0}.jpg'], ['{0}/{0}.jpg']),
            'train/train.jpg',
            'valid_a/train.jpg',
            "1 of 1 images of 'DIR/train/labels.json'",
        ),
    ],
)
def test_an_image_of_another_split_is_never_taken(make, old, new, message, tmp_path):
    make(tmp_path)
    (tmp_path / new).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / old).rename(tmp_path / new)
    assert message in said(tmp_path)


def test_a_label_of_another_folder_is_not_taken(tmp_path):
    root = yolo(tmp_path)
    other = root / 'val' / 'labels' / 'train' / 'TRAIN1.TXT'
    other.parent.mkdir(parents=True)
    (root / 'labels' / 'train' / 'train1.txt').rename(other)
    assert boxes(find_data(root).train) == {'train0.jpg': [CAT], 'train1.jpg': []}


def test_a_task_of_one_split_is_no_image_of_another(tmp_path):
    picture(tmp_path / 'val' / 'a.jpg')
    tasks = [{'id': 1, 'data': {'image': '/data/train/a.jpg'}, 'annotations': [{'result': []}]}]
    exports.write(tmp_path / 'a.json', json.dumps(tasks))
    assert said(tmp_path).startswith("'DIR/a.json', task 1: image 'a.jpg' is not in 'DIR'")


def test_a_users_attribute_called_rotation_changes_no_box(tmp_path):
    root = coco_set(tmp_path, ['{0}.jpg'], ['{0}/{0}.jpg'])
    for split in ('train', 'valid'):
        path = root / split / 'labels.json'
        coco = json.loads(path.read_text())
        coco['annotations'][0]['attributes'] = {'rotation': 90}
        path.write_text(json.dumps(coco))
    data = find_data(root)
    assert boxes(data.train) == {'train.jpg': [CAT]} and data.notes == ()


@pytest.mark.parametrize('folder', ['images', 'train', 'images/train', 'train/data'])
def test_a_missing_image_belongs_to_the_others(folder, tmp_path):
    names = ['a/x.jpg', 'b/x[1].jpg', 'a/gone.jpg']
    root = coco_set(tmp_path, names, [f'{folder}/{name}' for name in names[:2]], ['train'])
    assert said(root) == (
        "1 of 3 images of 'DIR/train/labels.json' do not exist (a/gone.jpg); put them into "
        f"'DIR/{folder}'"
    )
    for path in tmp_path.rglob('*.jpg'):
        path.unlink()
    assert said(root).endswith("put them into 'DIR/images/train'")


def test_coco_of_its_own_layout_is_converted_if_names_differ(cells, tmp_path):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'images').symlink_to(cells / 'images')
    for split in ('train', 'val'):
        coco = exports.coco_of(cells, split)
        last = coco['images'][-1]
        last['file_name'] = f'C:\\cells\\{last["file_name"]}'
        exports.write(tmp_path / 'annotations' / f'instances_{split}.json', json.dumps(coco))
    data = find_data(tmp_path)
    for name, split in (('train', data.train), ('val', data.val)):
        assert truth(split.ann_file) == truth(cells / 'annotations' / f'instances_{name}.json')
    assert data.notes[0].startswith('files were found under names with other folders: 2 (')


def test_rotated_boxes_that_cvat_wrote_to_coco_become_upright(cells, tmp_path):
    """CVAT writes the box before its rotation. cv2.boxPoints is the oracle."""
    (tmp_path / 'images').symlink_to(cells / 'images')
    expected = {}
    for split in ('train', 'val'):
        coco = exports.coco_of(cells, split)
        for number, annotation in enumerate(coco['annotations']):
            x, y, w, h = annotation['bbox']
            angle = (0, 40.0, -170, 'left')[number % 4] if number < 9 else 0
            annotation['attributes'] = {'occluded': False, 'rotation': angle}
            if number % 4 in (1, 2) and number < 9:
                points = cv2.boxPoints(((x + w / 2, y + h / 2), (w, h), angle))
                low, high = points.min(axis=0), points.max(axis=0)
                expected[split, annotation['id']] = [*low, *(high - low)]
            else:
                expected[split, annotation['id']] = [x, y, w, h]
        exports.write(tmp_path / 'annotations' / f'instances_{split}.json', json.dumps(coco))
    data = find_data(tmp_path)
    found = {
        (name, a['id']): a['bbox']
        for name, split in (('train', data.train), ('val', data.val))
        for a in json.loads(split.ann_file.read_text())['annotations']
    }
    originals = {
        split: [a['id'] for a in exports.coco_of(cells, split)['annotations']]
        for split in ('train', 'val')
    }
    assert all(ids == [*range(1, len(ids) + 1)] for ids in originals.values())
    assert found.keys() == expected.keys()
    for key, box in expected.items():
        np.testing.assert_allclose(found[key], box, atol=1e-3)
    (note,) = data.notes
    assert note.startswith('rotated boxes were replaced by the upright box around them: 8 (annot')


@pytest.mark.parametrize('writer', exports.WRITERS, ids=lambda writer: writer.__name__)
def test_a_test_split_is_named_and_not_used(writer, cells, tmp_path):
    """The validation images become the test split."""
    root = tmp_path / 'set'
    writer(exports.small_set(cells, tmp_path / 'coco'), root)
    names = {
        'val': 'test',
        'valid': 'test',
        'Validation': 'Test',
        'obj_valid_data': 'obj_test_data',
    }
    for path in sorted(root.rglob('*'), reverse=True):
        if path.stem in names:
            path.rename(path.with_name(names[path.stem] + path.suffix))
    for path in (
        path for kind in ('yaml', 'xml', 'data', 'txt') for path in root.glob(f'*.{kind}')
    ):
        text = path.read_text().replace('val: images/val', 'test: images/test')
        text = text.replace('subset="Validation"', 'subset="Test"').replace('valid', 'test')
        path.write_text(text)
    data = find_data(root)
    assert data.train.num_images + data.val.num_images == 6
    found = [note for note in data.notes if note.startswith('images of the test split are not us')]
    assert len(found) == 1 and 'are not used: 6 (' in found[0], data.notes


def test_a_test_split_beside_the_own_layout_is_named(cells, tmp_path):
    root = exports.small_set(cells, tmp_path)
    assert find_data(root).notes == ()
    picture(root / 'test' / 'a.jpg')
    exports.write(root / 'annotations' / 'instances_test.json', '{}')
    assert find_data(root).notes == (
        'annotation files of the test split are not used: 1 (annotations/instances_test.json)',
        'images of the test split are not used: 1 (test/a.jpg)',
    )


@pytest.mark.parametrize(
    ('make', 'file', 'old', 'new'),
    [
        (voc, '0.xml', '<object>.*</object>', ''),
        (lambda root: labelme(root, [SHAPE]), '0.json', r'"shapes": \[.*\]', '"shapes": []'),
        (lambda root: cvat(root, BOX), 'annotations.xml', BOX, ''),
        (
            lambda root: coco_set(root, ['0.jpg', '1.jpg'], ['0.jpg', '1.jpg'], ['train']),
            'train/labels.json',
            r'"annotations": \[{[^}]*}, ',
            '"annotations": [',
        ),
    ],
    ids=['voc', 'labelme', 'cvat', 'coco'],
)
def test_only_images_that_a_file_lists_without_objects_are_background(
    make, file, old, new, tmp_path
):
    path = make(tmp_path) / file
    text = path.read_text()
    path.write_text(re.sub(old, new, text, count=1, flags=re.DOTALL))
    assert path.read_text() != text
    picture(tmp_path / 'unlisted.jpg')
    data = find_data(tmp_path)
    found = {**boxes(data.train), **boxes(data.val)}
    assert found['0.jpg'] == [] and found['1.jpg'] == [CAT] and 'unlisted.jpg' not in found


def test_a_split_is_made_by_names(tmp_path):
    root = voc(tmp_path / 'set', number=40)
    data = find_data(root)
    val = set(boxes(data.val))
    assert (
        val
        and not val & set(boxes(data.train))
        and data.val.num_images + data.train.num_images == 40
    )
    assert data.notes[0] == (
        f'no validation split found; {len(val)} of 40 images were taken for validation by a hash '
        'of their names'
    )
    moved = root.rename(tmp_path / 'moved')
    picture(moved / 'new.jpg')
    new = {'file_name': 'new.jpg', 'width': 40, 'height': 30}
    exports.write(moved / 'new.xml', exports.voc_xml(new, [('cat', 0, CAT[1])]))
    assert set(boxes(find_data(moved).val)) - {'new.jpg'} == val


def test_the_copies_of_an_image_stay_together(tmp_path):
    for index in range(30):
        for copy in 'abc':
            name = f'{index}_jpg.rf.{copy}'
            picture(tmp_path / f'{name}.jpg')
            about = {'file_name': f'{name}.jpg', 'width': 40, 'height': 30}
            exports.write(tmp_path / f'{name}.xml', exports.voc_xml(about, [('cat', 0, CAT[1])]))
    data = find_data(tmp_path)
    train, val = ({n.split('_')[0] for n in boxes(s)} for s in (data.train, data.val))
    assert len(train) + len(val) == 30 and val


@pytest.mark.parametrize('number', [1, 2, 3])
def test_a_split_needs_two_images(number, tmp_path):
    root = voc(tmp_path / 'set', number=number)
    if number == 1:
        assert said(root).startswith(
            "'DIR' has no validation images, and 1 training images are too"
        )
    else:
        data = find_data(root)
        assert data.val.num_images >= 1 and data.train.num_images >= 1


def test_formats_that_cannot_be_told_apart_are_named(tmp_path):
    assert said(tmp_path / 'gone') == (
        "data set 'DIR' does not exist; give the folder with its annotations"
    )
    root = tmp_path / 'set'
    root.mkdir()
    assert said(root).startswith("'DIR' has no annotations in a known format (looked for annotatio")
    (root / 'x.json').write_text('{')
    assert said(root).startswith("'DIR/x.json' is not valid JSON (")
    yolo(root)
    voc(root / 'more')
    assert said(root) == (
        "'DIR' fits several formats: YOLO ('data.yaml') and Pascal VOC ('more/0.xml'); move all "
        'but one to another folder'
    )
    assert said(root / 'data.yaml') == "data set 'DIR' is a file; give the folder that contains it"


def test_a_conversion_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    root = yolo(tmp_path / 'set')
    (root / 'labels' / 'val' / 'val0.txt').unlink()
    first = find_data(root)
    before = {p.name: p.stat().st_mtime_ns for p in (root / '.evit_mm').iterdir()}
    assert {*before} - {'.lock'} == {'instances_train.json', 'instances_val.json', 'source.json'}
    assert find_data(root) == first and first.notes
    assert {p.name: p.stat().st_mtime_ns for p in (root / '.evit_mm').iterdir()} == before
    monkeypatch.chdir(tmp_path)
    assert find_data('set').notes == first.notes
    exports.write(root / 'labels' / 'val' / 'val0.txt', '1 0.5 0.5 0.25 0.2')
    second = find_data(root)
    assert second.notes == () and boxes(second.val)['val0.jpg'] == [('dog', CAT[1])]
    (root / '.evit_mm' / 'instances_val.json').unlink()
    assert find_data(root) == second


def test_a_training_in_the_data_folder_changes_nothing(tmp_path):
    root = voc(tmp_path / 'set')
    before = find_data(root)
    picture(root / 'work_dirs' / 'run' / 'pictures' / 'a.jpg')
    exports.write(root / 'work_dirs' / 'run' / 'a.yaml', 'names: [a]\ntrain: b')
    assert find_data(root) == before


@pytest.mark.parametrize('file', ['last_checkpoint', 'epoch_1.pth', '20260101_101010/vis_data/x'])
def test_a_training_in_any_folder_of_the_data_changes_nothing(file, tmp_path):
    """mmengine's log has a JSON object per line, which is no valid JSON file."""
    root = labelme(tmp_path / 'set', [SHAPE])
    before = find_data(root)
    for work_dir in ('mine', 'runs/mine'):
        run = root / work_dir
        exports.write(run / file, '')
        exports.write(run / 'rtmdet.py', '')
        log = (run / file).parent if 'vis_data' in file else run
        exports.write(log / 'scalars.json', '{"loss": 1}\n{"loss": 2}\n')
        picture(log / 'vis_image' / '0.jpg')
    assert find_data(root) == before


def test_a_data_folder_can_be_the_work_dir(tmp_path):
    root = labelme(tmp_path / 'set', [SHAPE])
    before = find_data(root)
    for name in ('last_checkpoint', 'epoch_1.pth', 'rtmdet.py'):
        exports.write(root / name, '')
    exports.write(root / '20260101_101010' / 'vis_data' / 'scalars.json', '{"a": 1}\n{"b": 2}\n')
    assert find_data(root) == before


def test_links_to_folders_are_followed(tmp_path):
    voc(tmp_path / 'far')
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set' / 'near').symlink_to(tmp_path / 'far')
    (tmp_path / 'far' / 'back').symlink_to(tmp_path / 'set')  # without an end
    data = find_data(tmp_path / 'set')
    assert data.train.num_images + data.val.num_images == 6 and len(data.notes) == 1


def test_processes_that_come_together_convert_once(tmp_path):
    root = yolo(tmp_path / 'set')
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: find_data(root), range(8)))
    assert found == [found[0]] * 8
    assert not list((root / '.evit_mm').glob('*.partial'))


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    root = yolo(tmp_path / 'set')

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(formats, 'write_json', refuse)
    assert said(root) == (
        "the converted annotations cannot be written to 'DIR/.evit_mm' (Read-only file system); "
        "make 'DIR' writable, or copy the data set"
    )
    monkeypatch.undo()
    data = find_data(root)
    monkeypatch.setattr(formats, 'write_json', refuse)
    assert find_data(root) == data  # nothing to write
