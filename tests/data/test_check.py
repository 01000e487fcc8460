import json
import re
import shutil
import unicodedata

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from evit_mm.data import SHAPE_CLASSES, check_coco, check_config_data, make_shapes
from evit_mm.data.check import inspect_config_data
from evit_mm.data.images import spread
from evit_mm.data.layout import find_data
from evit_mm.data.shapes import _place, shape_mask
from evit_mm.errors import DataError
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'set', 60, 40, quiet=True)


@pytest.fixture
def copy(shapes, tmp_path):
    """A data set of its own for the test to break."""
    return shutil.copytree(shapes, tmp_path / 'set')


def edit(root, change, split='val'):
    path = root / 'annotations' / f'instances_{split}.json'
    coco = json.loads(path.read_text())
    change(coco)
    path.write_text(json.dumps(coco))


def check(root, classes=SHAPE_CLASSES, training=False, split='val'):
    ann_file = root / 'annotations' / f'instances_{split}.json'
    return check_coco(ann_file, root / split, classes, training)


def test_shapes_are_the_same_for_a_seed_and_others_for_another(shapes, tmp_path):
    again = make_shapes(tmp_path / 'again', 60, 40, quiet=True)
    other = make_shapes(tmp_path / 'other', 60, 40, seed=1, quiet=True)
    for file in sorted(p.relative_to(shapes) for p in shapes.rglob('*') if p.is_file()):
        assert (again / file).read_bytes() == (shapes / file).read_bytes(), file
        assert (other / file).read_bytes() != (shapes / file).read_bytes(), file


def test_shapes_annotations_fit_their_pixels(shapes):
    coco = COCO(str(shapes / 'annotations' / 'instances_train.json'))
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(SHAPE_CLASSES)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        x, y, w, h = annotation['bbox']
        assert 0 <= x < x + w <= 256 and 0 <= y < y + h <= 256
        if annotation['iscrowd']:
            assert mask.sum() == annotation['area']
            rle = mask_api.frPyObjects(annotation['segmentation'], 256, 256)
            assert mask_api.toBbox(rle).tolist() == [x, y, w, h]
        elif annotation['area'] > 200:
            # a polygon loses the holes that objects on top make, and half a pixel around
            assert mask[y : y + h, x : x + w].sum() > 0.8 * annotation['area']
            assert mask.sum() <= mask[y : y + h + 1, x : x + w + 1].sum()


def test_shapes_have_all_sizes_crowds_empty_images_and_classes(shapes):
    coco = json.loads((shapes / 'annotations' / 'instances_train.json').read_text())
    areas = np.array([a['area'] for a in coco['annotations'] if not a['iscrowd']])
    shares = [(areas < 32**2).mean(), (areas > 96**2).mean()]
    assert min(*shares, 1 - sum(shares)) > 0.15
    assert any(a['iscrowd'] for a in coco['annotations'])
    assert {a['image_id'] for a in coco['annotations']} < {i['id'] for i in coco['images']}
    assert {a['category_id'] for a in coco['annotations']} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ('name', 'share'),
    [('circle', np.pi / 4), ('square', 0.5), ('triangle', 0.325), ('star', 0.33), ('cross', 0.5)],
)
def test_shape_masks_cover_what_geometry_says(name, share):
    mask = shape_mask(SHAPE_CLASSES.index(name), (100, 100), 120, 0.3, (200, 200))
    assert mask.sum() / 120**2 == pytest.approx(share, abs=0.03)


def test_an_object_hides_at_most_a_fifth_of_another():
    owner = np.zeros((96, 96), np.int32)
    owner[20:60, 20:60] = 1
    masks = [_place(np.random.default_rng(seed), owner, [1600], 1, 30) for seed in range(60)]
    hidden = [int((owner[mask] == 1).sum()) for mask in masks if mask is not None]
    assert len(hidden) > 40 and 100 < max(hidden) <= 320


def test_shapes_are_drawn_once_and_nothing_else_is_overwritten(shapes, tmp_path):
    before = (shapes / 'val' / '000001.jpg').stat().st_mtime_ns
    assert make_shapes(shapes, 60, 40, quiet=True) == shapes
    assert (shapes / 'val' / '000001.jpg').stat().st_mtime_ns == before
    with pytest.raises(DataError, match='exists, but not as a data set'):
        make_shapes(shapes, 61, 40, quiet=True)
    with pytest.raises(DataError, match='exists, but not as a data set'):
        make_shapes(ROOT / 'configs', 1, 1, quiet=True)
    with pytest.raises(DataError, match='at least one image'):
        make_shapes(tmp_path / 'x', 0, 1, quiet=True)
    with pytest.raises(DataError, match='32 pixels'):
        make_shapes(tmp_path / 'x', 1, 1, size=(16, 64), quiet=True)
    (tmp_path / 'empty').mkdir()
    assert make_shapes(tmp_path / 'empty', 1, 1, size=(64, 48), quiet=True).is_dir()
    assert cv2.imread(str(tmp_path / 'empty' / 'val' / '000001.jpg')).shape == (48, 64, 3)


def test_a_good_data_set_has_no_faults(shapes):
    assert check(shapes) == ([], [])
    assert check(shapes, training=True, split='train') == ([], [])


def test_real_data_have_no_faults(real_data):
    bccd = real_data('bccd')
    ann_file = bccd / 'annotations' / 'instances_train.json'
    assert check_coco(ann_file, bccd / 'images', ('RBC', 'WBC', 'Platelets'), True) == ([], [])
    coco = real_data('coco_mini')
    faults, _ = check_coco(coco / 'annotations/instances_val2017.json', coco / 'val2017')
    assert faults == []


def first(key, value):
    return lambda coco: coco['annotations'][0].update({key: value})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.pop('images'), "'images' is missing or not a list"),
        (lambda c: c['annotations'][0].pop('area'), "'area' is missing in 1 of .*; add it .width"),
        (lambda c: c['annotations'][0].pop('iscrowd'), "'iscrowd' is missing in 1 .*; add it .0"),
        (lambda c: c['images'][3].pop('height'), "'height' is missing in 1 of .* images"),
        (
            lambda c: c['categories'][0].update(name='disc'),
            'metainfo.classes has circle, but the categories are',
        ),
        (lambda c: c['categories'].reverse(), 'not in the order of'),
        (lambda c: c['images'].append(dict(c['images'][0])), 'images have duplicate ids .1.'),
        (first('image_id', 999), "the image_id of annotation 1 is not in 'images'"),
        (first('category_id', 77), "the category_id of annotation 1 is not in 'categories'"),
        (first('bbox', [1, 2, 3]), "'bbox' is not four finite numbers .* in 1 of .* annotations"),
        (first('bbox', [1, 2, float('nan'), 4]), 'is not four finite numbers'),
        (first('bbox', ['1', 2, 3, 4]), 'is not four finite numbers'),
        (first('area', None), "'area' is missing in 1 of .* annotations .1.; add it"),
        (first('area', 'big'), "'area' is not a finite number in 1 of .* annotations .1."),
        (first('iscrowd', '0'), "'iscrowd' is not 0 or 1 in 1 of .* .1., the first value is '0'"),
        (first('id', [1]), "'id' is not an integer or a string in 1 of .* annotations"),
        (
            lambda c: c['images'][0].update(width='256'),
            "'width' is not a positive integer in 1 of .* images",
        ),
        (
            lambda c: c['images'][0].update(file_name=None),
            "'file_name' is not a non-empty string in 1 of .* images",
        ),
        (
            lambda c: c['categories'][1].update(name='circle'),
            'several categories have the same name .circle.',
        ),
        (
            lambda c: c['images'][2].update(file_name='gone.jpg'),
            r'1 of 40 images are not in .*gone\.jpg',
        ),
        (lambda c: c['images'][0].update(width=512), 'is 256x256, not 512x256'),
        (lambda c: c['images'].clear() or c['annotations'].clear(), "'images' is empty"),
    ],
)
def test_faults_are_named(copy, change, message):
    edit(copy, change)
    faults, _ = check(copy)
    assert len(faults) == 1
    assert re.search(message, faults[0]), faults[0]


@pytest.mark.parametrize(
    ('change', 'skipped', 'counted'),
    [
        (
            first('bbox', [10, 10, 0, 5]),
            'with a side below one pixel',
            'no detection can',
        ),
        (first('area', 0), 'whose area is not positive', ''),
        (first('bbox', [300, 10, 20, 20]), 'box outside of the image', 'no detection can match'),
        (first('bbox', [-30, 10, 20, 20]), 'box outside of the image', 'no detection can match'),
        (
            first('bbox', [10, 10, 9, 0.5]),
            'with a side below one pixel',
            'with a side below one pixel',
        ),
        (first('ignore', 1), 'skips 1 object with "ignore": 1', 'counts 1 object with "ignore": 1'),
        (
            first('area', -1),
            'whose area is not positive',
            'ignores 1 object whose area is negative',
        ),
        (first('bbox', [240, 10, 60, 20]), 'clips 1 box over the edge', 'compares with 1 box'),
    ],
)
def test_what_a_training_skips_is_said_of_trainings_only(copy, change, skipped, counted):
    edit(copy, change)
    for training, part in ((True, skipped), (False, counted)):
        faults, notes = check(copy, training=training)
        assert faults == [] and len(notes) == bool(part)
        kind = 'training' if training else 'evaluation'
        assert all(part in note and '(annotation 1)' in note for note in notes)
        assert all(f"instances_val.json': {kind} " in note for note in notes)


def test_rotated_objects_whose_boxes_are_not_are_counted(copy):
    def rotate(coco):
        for annotation, degrees in zip(coco['annotations'], (40, 0.0, -5.5, 'left'), strict=False):
            annotation.update(attributes={'occluded': False, 'rotation': degrees}, segmentation=[])
        coco['annotations'][4]['attributes'] = {'rotation': 90}  # of a user, not of CVAT

    edit(copy, rotate)
    faults, (note,) = check(copy)
    assert not faults and '2 objects with attributes.rotation of CVAT (annotations 1, 3)' in note


def test_an_evaluation_without_objects_is_noted(copy):
    edit(copy, lambda coco: coco['annotations'].clear())
    faults, (note,) = check(copy)
    assert not faults and 'every AP will be -1' in note


BEAR = 'B\u00e4r'


@pytest.mark.parametrize(
    ('name', 'file', 'message'),
    [
        (
            'images\\{}',
            'images/{}',
            "slashes instead of backslashes ('images/1.jpg' for 'images\\1.jpg'); write file_name "
            'as the path of the file below this folder, with /',
        ),
        (
            f'{BEAR}{{}}',
            unicodedata.normalize('NFD', BEAR) + '{}',
            'form NFD, with unicodedata.normalize(',
        ),
        (
            unicodedata.normalize('NFD', BEAR) + '{}',
            f'{BEAR}{{}}',
            'write file_name in the form NFC',
        ),
        ('A{}', 'a{}', "other upper and lower case letters ('a1.jpg' for 'A1.jpg'); write"),
        # the other 38 images are not in the folder of the first two
        ('{}', 'a/b/{}', "files with these names are in 'DIR/a/b'; write file_name as the path"),
        ('val/{}', '{}', "files with these names are in 'DIR'; write file_name as the path"),
        ('C:\\me\\{}', '{}', "files with these names are in 'DIR'; write file_name as the path"),
        ('../other/{}', 'a/{}', "are in 'DIR/a'; write file_name as the path of the file below"),
        ('{}', 'train/{}', "are in 'DIR/train'; check data_prefix.img and file_name"),
        ('train/{}', '{}', "are in 'DIR'; check data_prefix.img and file_name"),
        ('{}', '{}.jpg', '(1.jpg, 2.jpg); check data_prefix.img or copy the images there'),
    ],
)
def test_images_under_another_name_are_named_with_their_cause(copy, name, file, message):
    folder = copy / 'val'
    coco = json.loads((copy / 'annotations' / 'instances_val.json').read_text())
    for number, image in enumerate(coco['images'][:2], 1):
        target = folder / file.format(f'{number}.jpg')
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / image['file_name']).rename(target)
        image['file_name'] = name.format(f'{number}.jpg')
    (copy / 'annotations' / 'instances_val.json').write_text(json.dumps(coco))
    (fault,), _ = check(copy)
    assert f"2 of 40 images are not in '{folder}' (" in fault
    assert message.replace('DIR', str(folder)) in fault


@pytest.mark.parametrize(
    ('asked', 'name', 'moved', 'said'),
    [
        (
            '',
            '{}',
            'val',
            "files with these names are in 'DIR/val'; check data_prefix.img and file",
        ),
        ('val', '{}', 'val/a/b', "all images are in 'DIR/val/a/b'; set data_prefix.img to this"),
        ('val', '{}', 'val/val', "all images are in 'DIR/val/val'; set data_prefix.img to this"),
        ('val', '{}', 'val/train', "are in 'DIR/val/train'; check data_prefix.img and file_name"),
        ('val', 'val/{}', 'val', "all images are in 'DIR'; set data_prefix.img to this folder"),
        ('', 'train/{}', 'val', "files with these names are in 'DIR/val'; check data_prefix.img"),
    ],
)
def test_a_folder_with_all_images_is_named_unless_it_is_of_another_split(
    copy, asked, name, moved, said
):
    (copy / 'val').rename(copy / 'old')
    (copy / moved).parent.mkdir(parents=True, exist_ok=True)
    (copy / 'old').rename(copy / moved)
    shutil.rmtree(copy / 'train')
    edit(copy, lambda c: [i.update(file_name=name.format(i['file_name'])) for i in c['images']])
    ann_file = copy / 'annotations' / 'instances_val.json'
    (fault,), _ = check_coco(ann_file, copy / asked, SHAPE_CLASSES)
    assert f"40 of 40 images are not in '{copy / asked}' (" in fault
    assert said.replace('DIR', str(copy)) in fault


def test_of_many_missing_images_only_the_first_are_explained(copy, monkeypatch):
    monkeypatch.setattr('evit_mm.data.image_files.MOST_EXPLAINED', 3)
    for number in range(1, 7):
        image = copy / 'val' / f'{number:06d}.jpg'
        image.rename(image.with_suffix('.JPG'))
    (fault,), _ = check(copy)
    assert ': at least 3 of 40 images are not in' in fault and "('000001.JPG' for" in fault
    (copy / 'val' / '000002.JPG').unlink()
    renamed, gone = check(copy)[0]
    assert ': at least 2 of 40 images are not in' in renamed
    assert ': 4 of 40 images are not in' in gone and '(000002.jpg, 000004.jpg, ' in gone
    monkeypatch.setattr('evit_mm.data.image_files.MOST_SEARCHED', 0)
    assert ': 6 of 40 images are not in' in check(copy)[0][0]


def test_each_cause_of_missing_images_is_named_for_itself(copy):
    folder = copy / 'val'
    (folder / '000001.jpg').rename(folder / 'A.JPG')
    (folder / '000002.jpg').unlink()
    for name in ('a', 'b'):
        (folder / name).mkdir()
        shutil.copy(folder / '000004.jpg', folder / name / '000003.jpg')
    (folder / '000003.jpg').unlink()
    edit(copy, lambda c: c['images'][0].update(file_name='a.jpg'))
    faults, _ = check(copy)
    assert all(': 1 of 40 images are not in' in fault for fault in faults) and len(faults) == 3
    assert '(000002.jpg); check data_prefix.img or copy' in faults[1]
    assert f"are in '{folder / 'a'}', '{folder / 'b'}'; check data_prefix.img and" in faults[2]


def make_all(key, value):
    return lambda coco: [a.update({key: value}) for a in coco['annotations']]


@pytest.mark.parametrize(
    'change',
    [
        lambda c: c['annotations'].clear(),
        make_all('iscrowd', 1),
        make_all('bbox', [900, 900, 10, 10]),
        make_all('area', 0),
    ],
)
def test_no_usable_box_is_a_fault_in_training(copy, change):
    edit(copy, change)
    assert 'add at least one for training' in check(copy, training=True)[0][0]


def test_images_that_are_no_files_are_named(copy):
    path = copy / 'val' / '000001.jpg'
    path.write_bytes(b'')
    assert 'cannot be decoded' in check(copy)[0][0]
    path.unlink()
    path.mkdir()
    assert 'cannot be decoded' in check(copy)[0][0]


def test_a_sample_is_evenly_spread_and_never_too_large():
    assert list(spread(range(10), 4)) == [0, 3, 6, 9]
    assert list(spread(range(8), 8)) == list(range(8)) and not spread([], 8)
    for number in range(1, 40):
        for most in range(1, 12):
            found = spread(range(number), most)
            assert 1 <= len(found) <= most and len(set(np.diff(found))) <= 1


def test_gaps_in_category_ids_are_fine(copy):
    def spread(coco):
        for item in coco['categories']:
            item['id'] = item['id'] ** 2 + 3
        for item in coco['annotations']:
            item['category_id'] = item['category_id'] ** 2 + 3

    edit(copy, spread)
    assert check(copy) == ([], [])


def test_broken_files_are_named(copy):
    ann_file = copy / 'annotations' / 'instances_val.json'
    text = ann_file.read_text()
    ann_file.write_text(text[: len(text) // 2])
    assert 'is not valid JSON' in check(copy)[0][0]
    ann_file.write_text('[1, 2]')
    assert 'export the file in COCO format' in check(copy)[0][0]
    ann_file.write_text(text)
    (copy / 'val' / '000001.jpg').write_bytes(b'\xff\xd8 not a picture')
    assert 'cannot be decoded' in check(copy)[0][0]
    shutil.rmtree(copy / 'val')
    assert 'image folder' in check(copy)[0][0]
    assert "is the string 'circle'" in check(copy, classes='circle')[0][0]


def test_an_image_rotated_by_exif_is_named(copy):
    from PIL import Image

    path = copy / 'val' / '000001.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.zeros((256, 128, 3), np.uint8))
    image.save(path, exif=exif)
    edit(copy, lambda c: c['images'][0].update(width=128))
    faults, _ = check(copy)
    assert 'is 256x128' in faults[0] and 'EXIF' in faults[0]


def config_for(root, **changes):
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_evit_m4_shapes.py')
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = str(root)
    for split in ('val', 'test'):
        cfg[f'{split}_evaluator'].ann_file = str(root / 'annotations' / 'instances_val.json')
    cfg.merge_from_dict(changes)
    return cfg


def test_configs_are_checked_as_a_whole(shapes, tmp_path):
    check_config_data(config_for(shapes))
    with pytest.raises(DataError, match='set model.bbox_head.num_classes=5'):
        check_config_data(config_for(shapes, **{'model.bbox_head.num_classes': 80}))
    with pytest.raises(DataError, match='val_evaluator.ann_file is .* but val_dataloader reads'):
        check_config_data(config_for(shapes, **{'val_evaluator.ann_file': 'other.json'}))
    with pytest.raises(DataError, match=r'run python tools/make_shapes\.py'):
        check_config_data(config_for(tmp_path / 'shapes'))
    crowds = shutil.copytree(shapes, tmp_path / 'crowds')
    for split in ('train', 'val'):
        edit(crowds, lambda coco: [a.update(iscrowd=1) for a in coco['annotations']], split)
    check_config_data(config_for(crowds), ('val',))
    with pytest.raises(DataError, match='train: .* add at least one for training'):
        check_config_data(config_for(crowds))
    wrapped = config_for(tmp_path / 'none')
    dataset = {'type': 'RepeatDataset', 'times': 2, 'dataset': wrapped.train_dataloader.dataset}
    wrapped.train_dataloader.dataset = dataset
    with pytest.raises(DataError, match='train: annotation file'):
        check_config_data(wrapped, ('train',))


def test_a_split_knows_its_first_image_and_its_boxes(tmp_path):
    root = make_shapes(tmp_path / 'set', 2, 3, size=(80, 48), quiet=True)
    edit(root, lambda coco: coco['annotations'][0].update(iscrowd=1))
    coco = json.loads((root / 'annotations' / 'instances_val.json').read_text())
    val = find_data(root).val
    assert val.first_image == root / 'val' / '000001.jpg' and val.num_images == 3
    assert val.sizes[0] == cv2.imread(str(val.first_image)).shape[1::-1] == (80, 48)
    assert sum(val.num_boxes.values()) == sum(not a['iscrowd'] for a in coco['annotations'])


def test_without_coco_the_message_says_how_to_lay_it_out():
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_evit_m4_coco.py')
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.data_root = 'nowhere/coco/'
    cfg.val_evaluator.ann_file = 'nowhere/coco/annotations/instances_val2017.json'
    with pytest.raises(DataError) as caught:
        check_config_data(cfg)
    text = str(caught.value)
    assert 'nowhere/coco/annotations/instances_{train,val}2017.json' in text
    assert 'configs/retinanet_evit_m4_shapes.py' in text


def boxed(*boxes, width=60, height=40):
    """Return an annotation file of a 60x40 image with these boxes and an area for each."""
    kinds = {'image_id': 1, 'category_id': 3, 'iscrowd': 0}
    return {
        'images': [{'id': 1, 'file_name': 'a/0.png', 'width': width, 'height': height}],
        'annotations': [
            {'id': number, 'bbox': list(box), 'area': area, **kinds}
            for number, (*box, area) in enumerate(boxes)
        ],
        'categories': [{'id': 3, 'name': 'disc'}],
    }


def check_boxed(folder, coco, **options):
    (folder / 'a').mkdir(exist_ok=True)
    cv2.imwrite(str(folder / 'a' / '0.png'), np.zeros((40, 60, 3), np.uint8))
    (folder / 'a.json').write_text(json.dumps(coco))
    faults, notes = check_coco(str(folder / 'a.json'), str(folder), **options)
    return [text.removeprefix(f"'{folder}/a.json': ") for text in faults + notes]


INSIDE = (0, 0, 60, 40, 2400)


@pytest.mark.parametrize(
    ('box', 'skipped', 'counted'),
    [
        ((5, 5, 1, 1, 0.5), '', ''),
        ((-1, -1, 62, 42, 2604), '', ''),  # one pixel on each side may come from rounding
        ((59, 39, 2, 2, 9), '', ''),
        ((5, 5, 0.9, 9, 9), 'skips 1 box with a side below one', 'counts 1 box with a side below'),
        ((5, 5, 9, 0.9, 9), 'skips 1 box with a side below one', 'counts 1 box with a side below'),
        (
            (5, 5, 9, 9, -1),
            'skips 1 object whose area is not positive',
            'ignores 1 object whose area',
        ),
        ((60, 5, 1, 9, 9), 'skips 1 box outside', 'counts 1 box without area or outside'),
        ((5, 40, 9, 1, 9), 'skips 1 box outside', 'counts 1 box without area or outside'),
        ((-9, 5, 9, 9, 9), 'skips 1 box outside', 'counts 1 box without area or outside'),
        ((5, -9, 9, 9, 9), 'skips 1 box outside', 'counts 1 box without area or outside'),
        ((-1.5, 5, 9, 9, 9), 'clips 1 box', 'compares with 1 box'),
        ((5, -1.5, 9, 9, 9), 'clips 1 box', 'compares with 1 box'),
        ((5, 5, 56.5, 9, 9), 'clips 1 box', 'compares with 1 box'),
        ((5, 5, 9, 36.5, 9), 'clips 1 box', 'compares with 1 box'),
        ((45, 5, 14, 9, 9), '', ''),  # not if width and height of the image were swapped
    ],
)
def test_boxes_at_the_edges(box, skipped, counted, tmp_path):
    for training, part in ((True, skipped), (False, counted)):
        notes = check_boxed(tmp_path, boxed(INSIDE, box), training=training)
        kind = 'training' if training else 'evaluation'
        assert [note.startswith(f'{kind} {part}') for note in notes] == [True] * bool(part)
        assert all('(annotation 1)' in note for note in notes)
    if skipped.startswith('skips'):  # then nothing is left to train on
        fault = check_boxed(tmp_path, boxed(box), training=True)[0]
        assert 'add at least one for training' in fault


def test_masks_are_asked_for_where_they_are_loaded(tmp_path):
    coco = boxed(INSIDE, (30, 20, 9, 9, 81), (5, 5, 0, 0, 0))
    coco['annotations'][0]['segmentation'] = {'size': [40, 60], 'counts': [400, 20, 1980]}
    for training, number in ((True, '1 of 2'), (False, '2 of 3')):
        assert len(check_boxed(tmp_path, coco, training=training)) == 1  # the box without area
        fault, _ = check_boxed(tmp_path, coco, with_mask=True, training=training)
        assert fault.startswith(f'{number} annotations have no valid segmentation (1')
    coco['annotations'][1]['segmentation'] = [[1, 1, 9, 1, 9, 9]]
    assert len(check_boxed(tmp_path, coco, with_mask=True, training=True)) == 1


def test_classes_are_a_part_of_the_categories_in_their_order(tmp_path):
    coco = boxed(INSIDE)
    coco['categories'].append({'id': 9, 'name': 'box'})
    assert not check_boxed(tmp_path, coco, classes=('disc',))
    (note,) = check_boxed(tmp_path, coco, classes=['disc', 'box'])
    assert note == 'evaluation has no object of box, so the AP is the mean of the others'
    (note,) = check_boxed(tmp_path, coco, classes=['disc', 'box'], training=True)
    assert note == 'training has no object of box'
    fault, _ = check_boxed(tmp_path, coco, classes=('box', 'disc'))
    assert fault.endswith("set metainfo.classes=('disc', 'box')")
    (note,) = check_boxed(tmp_path, coco, classes=('box',))
    assert note.startswith('no box has a class of the config') and 'every AP will be -1' in note


def test_so_many_images_are_decoded(tmp_path):
    coco = boxed(INSIDE)
    coco['images'] *= 20
    for index, image in enumerate(coco['images']):
        coco['images'][index] = {**image, 'id': index + 1, 'file_name': f'{index}.png'}
        pixels = np.zeros((40, 60) if index else (60, 40), np.uint8)
        cv2.imwrite(str(tmp_path / f'{index}.png'), pixels)
    (tmp_path / '1.png').write_bytes(b'-')
    differing = "images in '.*' have a different size .*0.png is 40x60, not 60x40"
    (fault,) = check_boxed(tmp_path, coco)  # every third: at most eight
    assert re.match(f'1 of 7 checked {differing}', fault)
    broken, fault = check_boxed(tmp_path, coco, num_decoded=None)
    assert re.match(f'1 of 20 checked {differing}', fault)
    assert re.match(r"1 of 20 checked images in '.*' cannot be decoded \(1\.png\)", broken)
    (tmp_path / '2.png').unlink()
    assert '1 of 20 images are not in' in check_boxed(tmp_path, coco)[0]


def test_each_finding_on_a_config_names_its_split_once(copy):
    def found(splits=('train', 'val', 'test'), num_decoded=8, **changes):
        report = inspect_config_data(config_for(copy, **changes), splits, num_decoded)
        return report.faults, report.notes

    assert found() == ([], [])
    edit(copy, first('bbox', [10, 10, 0, 5]))
    faults, notes = found()
    assert (
        not faults and len(notes) == 1 and notes[0].startswith("val: '")
    )  # test has the same file
    head = {'type': 'FCNMaskHead', 'num_classes': 5}
    roi_head = {'bbox_head': {**head, 'num_classes': 6}, 'mask_head': {**head, 'num_classes': 7}}
    faults, _ = found(['val'], **{'model.roi_head': roi_head})
    assert [fault.split()[1:4] for fault in faults] == [
        ['model.roi_head.bbox_head.num_classes', 'is', '6'],
        ['model.roi_head.mask_head.num_classes', 'is', '7'],
    ]
    (copy / 'train' / '000005.jpg').write_bytes(b'-')
    (copy / 'val' / '000002.jpg').write_bytes(b'-')
    assert found(['train', 'val'])[0] == []  # not among the eight
    faults, notes = found(['train', 'val'], None)
    assert [fault.split(':')[0] for fault in faults] == ['train', 'val'] and len(notes) == 1
    replace = {'train_cfg.corrupt_images': 'replace'}
    faults, notes = found(['train', 'val'], None, **replace)
    assert [fault.split(':')[0] for fault in faults] == ['val']
    assert [note.split(':')[0] for note in notes] == ['train', 'val']
    remote = {f'{split}_dataloader.dataset.data_root': 's3://a' for split in ('train', 'val')}
    assert found(['train', 'val'], None, **remote) == ([], [])
    other = f'{copy}/annotations/../annotations/instances_val.json'
    assert not found(['val'], **{'val_evaluator.ann_file': other})[0]


@pytest.mark.parametrize('size', [0, 900])
def test_empty_and_truncated_image_files_are_named_wherever_they_are(copy, size):
    names = sorted(path.name for path in (copy / 'val').iterdir())
    unchecked = next(name for name in names if name not in spread(names, 8))
    with open(copy / 'val' / unchecked, 'rb+') as file:
        file.truncate(size)
    (fault,), _ = check(copy)
    assert f"1 of 40 images in '{copy / 'val'}' cannot be decoded, because the" in fault
    assert f'the files are empty or truncated ({unchecked}); replace them' in fault


def test_a_test_alone_says_that_its_images_are_training_images(copy, monkeypatch):
    cfg = config_for(copy)
    notes = inspect_config_data(cfg, ('test',)).notes
    assert not [note for note in notes if 'training' in note]
    cfg.test_dataloader.dataset.update(cfg.train_dataloader.dataset, test_mode=True)
    cfg.test_evaluator.ann_file = str(copy / 'annotations' / 'instances_train.json')
    report = inspect_config_data(cfg, ('test',))
    (note,) = (note for note in report.notes if 'training' in note)
    assert note.startswith('test: training has 60 of 60 images too')
    assert [*report.counts] == ['test'] and 'images that are also in train' in report.table
    monkeypatch.setattr('evit_mm.data.check.LARGEST_COMPARED', 10)
    notes = inspect_config_data(cfg, ('test',)).notes
    assert not [note for note in notes if 'training' in note]


def test_a_file_under_two_image_ids(tmp_path):
    coco = boxed((5, 5, 20, 20, 400), (30, 5, 20, 20, 400))
    coco['images'].append({**coco['images'][0], 'id': 2, 'file_name': 'a/./0.png'})
    coco['annotations'][1]['image_id'] = 2
    expected = '1 file with several image ids and other objects for each (a/0.png), so objects of'
    for training in (True, False):
        (note,) = check_boxed(tmp_path, coco, training=training)
        assert note.startswith(expected)
        # the same objects twice, which gives the image a larger weight
        same = {**coco['annotations'][0], 'image_id': 2, 'id': 1}
        even = {**coco, 'annotations': [coco['annotations'][0], same]}
        assert not check_boxed(tmp_path, even, training=training)


def test_one_error_has_one_sentence(copy):
    cfg = config_for(copy)
    cfg.val_dataloader.dataset.metainfo = {}  # COCO's 80 classes, which the head does not have
    (fault,) = inspect_config_data(cfg, ('val',)).faults
    assert 'metainfo.classes has person' in fault and 'num_classes' not in fault
    cfg.val_dataloader.dataset.metainfo = {'classes': (*SHAPE_CLASSES, 'star')}
    (fault,) = inspect_config_data(cfg, ('val',)).faults
    assert fault.endswith('metainfo.classes has star more than once; remove the repetition')
    edit(copy, lambda coco: coco['images'][0].pop('id'))
    (fault,) = check(copy)[0]
    assert "'id' is missing in 1 of 40 images (number 1); add it" in fault
    edit(copy, lambda coco: coco['images'][0].update(id=coco['images'][1]['id']))
    (fault,) = check(copy)[0]
    assert 'images have duplicate ids (2); make them unique' in fault
