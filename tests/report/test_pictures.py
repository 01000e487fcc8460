"""The images that the report shows, and what their pictures say, by hand and by naive loops."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from evit_mm.evaluation import tide
from evit_mm.evaluation.synthetic_detections import synthetic_detections
from evit_mm.report import pictures
from tests.evaluation.test_tide import FAR, A, B, a_case, analysed

CROWD = [0, 80, 20, 20]


@pytest.fixture(scope='module')
def mine():
    """One image with a case of each kind of box, seen at the score threshold 0.6."""
    objects = [(0, A), (0, FAR), (1, B), (0, [0, 40, 10, 10]), (0, CROWD, True), (0, [40, 0, 9, 9]),
               (1, [80, 0, 10, 10])]  # fmt: skip
    found = [
        (0, A, 0.95), (1, [80, 0, 10, 10], 0.9), (0, [40, 0, 9, 9], 0.85), (0, FAR, 0.8),
        (0, [2, 82, 4, 4], 0.76), (0, B, 0.75), (0, [0, 45, 10, 10], 0.7), (0, A, 0.65),
        (1, B, 0.6), (1, [60, 60, 5, 5], 0.3), (0, [0, 40, 10, 10], 0.1),
    ]  # fmt: skip
    truth, results = a_case(objects, found)
    truth['images'][0].update(width=200, height=100)
    made = analysed(truth, results)
    made.working_score = 0.6
    return made


def test_what_each_box_of_a_card_says(mine):
    mistakes = pictures.find_mistakes(mine)
    card = pictures.make_card(0, mine, mistakes)
    assert [(b.bbox[:2], b.label, b.state, b.title, b.score) for b in card.truth] == [
        ([0, 80], 'class 0', 'ignored', 'class 0: crowd, not counted', None),
        ([0, 0], 'class 0', 'right', 'class 0: found with score 0.95', 0.95),
        ([80, 80], 'class 0', 'right', 'class 0: found with score 0.80', 0.8),
        ([40, 40], 'class 1', 'right', 'class 1: found with score 0.60, classification error of a '
         'detection with score 0.75', 0.6),
        ([0, 40], 'class 0', 'localisation', 'class 0: found with score 0.10, localisation error '
         'of a detection with score 0.70', 0.1),
        ([40, 0], 'class 0', 'right', 'class 0: found with score 0.85', 0.85),
        ([80, 0], 'class 1', 'right', 'class 1: found with score 0.90', 0.9),
    ]  # fmt: skip
    assert [b.wrong for b in card.truth] == [
        None, None, None, ('classification', 0.75), ('localisation', 0.7), None, None,
    ]  # fmt: skip
    assert [(b.label, b.state, b.score) for b in card.found] == [
        ('class 0 0.95', 'right', 0.95), ('class 1 0.90', 'right', 0.9),
        ('class 0 0.85', 'right', 0.85), ('class 0 0.80', 'right', 0.8),
        ('class 0 0.76', 'ignored', 0.76), ('class 0 0.75', 'classification', 0.75),
        ('class 0 0.70', 'localisation', 0.7), ('class 0 0.65', 'duplicate', 0.65),
        ('class 1 0.60', 'right', 0.6), ('class 1 0.30', 'background', 0.3),
        ('class 0 0.10', 'right', 0.1),
    ]  # fmt: skip
    titles = [b.title.split(': ')[1] for b in card.found]
    assert titles[3:8] == [
        'correct', 'inside a crowd, not counted', 'classification error, the object is class 1',
        'localisation error', 'duplicate error',
    ]  # fmt: skip
    assert card.found[6].bbox == [0, 45, 10, 10]
    # the object that is badly placed at 0.7 is not missed as well; 0.3 is not counted
    assert card.counts == {'classification': 1, 'localisation': 1, 'duplicate': 1}
    # all boxes that are counted: without the crowd and the detection inside it
    assert card.objects == [
        [0, 0.95, -1], [0, 0.8, -1], [1, 0.6, 0.75], [0, 0.1, 0.7], [0, 0.85, -1], [1, 0.9, -1],
    ]  # fmt: skip
    assert card.detections == [
        [-1, 0, 0.95], [-1, 1, 0.9], [-1, 0, 0.85], [-1, 0, 0.8], [0, 0, 0.75], [1, 0, 0.7],
        [3, 0, 0.65], [-1, 1, 0.6], [4, 1, 0.3], [-1, 0, 0.1],
    ]  # fmt: skip
    assert card.size == (200, 100) and card.f1 == mine.f1[0] and card.name == 'a.jpg'


def test_a_missed_object_counts_once_unless_a_sure_box_is_about_it():
    # the second object is found below the threshold only, the third by nothing, the fourth badly
    objects = [(0, A), (1, B), (1, FAR), (0, [0, 40, 10, 10]), (0, CROWD, True)]
    found = [(0, A, 0.9), (0, [0, 45, 10, 10], 0.1), *[(1, [60, y, 5, 5], 0.05) for y in (0, 9)],
             (1, B, 0.01)]  # fmt: skip
    mine = analysed(*a_case(objects, found))
    mine.working_score = 0.9
    rows = sorted(pictures.find_mistakes(mine).tolist())
    assert rows == [[0, tide.MISSED, 0], [0, tide.MISSED, 1], [0, tide.MISSED, 1]]
    card = pictures.make_card(0, mine, pictures.find_mistakes(mine))
    assert card.counts == {'missed': 3}
    assert sorted(box.state for box in card.truth) == ['ignored', *3 * ['missed'], 'right']


def test_of_many_boxes_those_of_missed_objects_are_drawn_first():
    grid = [[10 * i, 10 * k, 9, 9] for i in range(10) for k in range(5)]
    found = [(0, box, 0.5 + place / 100) for place, box in enumerate(grid[:45])]
    mine = analysed(*a_case([(0, box) for box in grid], found))
    card = pictures.make_card(0, mine, pictures.find_mistakes(mine))
    assert [box.state for box in card.truth] == ['missed'] * 5 + ['right'] * 35
    assert [box.score for box in card.found] == [round(0.5 + i / 100, 2) for i in range(44, 4, -1)]
    assert len(card.objects) == 50 and len(card.detections) == 45  # the counts have all of them


def test_no_score_reaches_a_threshold_by_rounding():
    scores = np.array([0.9, 0.30001, 0.3, np.float32(0.3), 0.29999, np.nextafter(0.29, 0), 0.29])
    mine = analysed(*a_case([(0, A)], [(0, B, score) for score in scores]))
    card = pictures.make_card(0, mine, pictures.find_mistakes(mine))
    shown = [score for *_, score in card.detections]
    assert [score >= 0.3 for score in shown] == [score >= 0.3 for score in mine.found.score]
    assert np.abs(shown - mine.found.score).max() < 1e-4
    assert [float(f'{score:.4f}') for score in shown] == shown
    assert all((score >= 0.29) == (own >= 0.29 - 1e-9) for score, own in
               zip(shown, mine.found.score, strict=True))  # fmt: skip


@pytest.mark.parametrize('score', [0.2, 0.45, 0.7])
def test_an_object_is_drawn_as_missed_where_it_is_counted_as_missed(score):
    mine = analysed(*synthetic_detections(20, num_classes=4, seed=5))
    mine.working_score = score
    mistakes = pictures.find_mistakes(mine)
    numbers = []
    for image in range(20):
        card = pictures.make_card(image, mine, mistakes)
        if len(card.objects) == sum(box.state != 'ignored' for box in card.truth):
            numbers.append(sum(box.state == 'missed' for box in card.truth))
            assert numbers[-1] == card.counts.get('missed', 0)
    assert len(numbers) > 15 and sum(numbers) > 5


def test_the_worst_images_and_some_of_each_kind_and_class_are_chosen():
    rng = np.random.default_rng(0)
    f1 = rng.integers(0, 5, 200) / 5
    f1[:3] = 1  # these have no mistake
    mistakes = np.column_stack([rng.integers(3, 200, 500), rng.choice(5, 500), rng.choice(20, 500)])
    mistakes[:9] = [[3 + i, 5, 20] for i in range(9)]  # a rare kind in good images
    f1[3:12] = 0.99
    number = [sum(row[0] == image for row in mistakes) for image in range(200)]
    order = sorted((i for i in range(200) if f1[i] < 1), key=lambda i: (f1[i], -number[i]))
    expected = set(order[:30])
    for column, most in ((1, 6), (2, 3)):
        for value in set(mistakes[:, column]):
            own = {row[0] for row in mistakes if row[column] == value}
            expected |= set([image for image in order if image in own][:most])
    chosen = pictures.choose(f1, mistakes, 200)
    assert chosen == [image for image in order if image in expected]
    assert pictures.choose(f1, mistakes, 10) == order[:10]


def test_thumbnails_are_as_large_as_the_room_allows(tmp_path):
    rng = np.random.default_rng(0)
    sizes = {'a': (1280, 960), 'c': (8, 8), 'tall': (100, 800)}
    for name, size in sizes.items():
        pixels = rng.integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{name}.png')

    def drawn(room, *names):
        """The sizes of the thumbnails, the bytes of each, and the place of each card's one."""
        some = [
            pictures.Card(name, tmp_path / f'{name}.png', 0.0, (1, 1), [], [], {}, [], [])
            for name in names
        ]
        addresses, unreadable = pictures.add_thumbnails(some, room)
        assert unreadable == [tmp_path / 'none.png'] * ('none' in names)
        files = [io.BytesIO(base64.b64decode(text.split('base64,')[1])) for text in addresses]
        places = [card.thumbnail for card in some]
        return [Image.open(file).size for file in files], [*map(len, addresses)], places

    names = ('tall', 'a', 'none', 'tall', 'c')
    shape, large, places = drawn(10**7, *names)
    assert shape == [(80, 640), (640, 480), (8, 8)] and places == [0, 1, None, 0, 2]
    assert drawn(sum(large), *names)[0] == shape
    shape, middle, _ = drawn(sum(large) - 1, *names)
    assert shape == [(60, 480), (480, 360), (8, 8)] and sum(middle) < sum(large)
    shape, small, _ = drawn(sum(middle) - 1, *names)
    assert shape == [(40, 320), (320, 240), (8, 8)]
    # one that does not fit leaves the room to a smaller one, to the last byte
    for less, expected in ((0, [0, None, 1]), (1, [0, None, None])):
        assert drawn(small[0] + small[2] - less, 'tall', 'a', 'c')[2] == expected
