"""The page of the report in a real browser, and what it says where something is missing."""

import base64
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex
from mmengine.config import Config
from PIL import Image

from evit_mm.data import make_shapes
from evit_mm.errors import ConfigError, DataError
from evit_mm.evaluation import tide
from evit_mm.evaluation.synthetic_detections import synthetic_detections
from evit_mm.report import analysis, detections, pictures, runs, write_report
from evit_mm.report import page as page_module
from tests.conftest import ROOT
from tests.docs.test_pages import blocks
from tests.evaluation.test_tide import FAR, A, B, a_case, analysed
from tests.report.test_runs import train_line, write_run
from tests.trainings import write_config

HOSTILE = [
    '</script><script>window.hacked = 1</script>',
    '<img src=x onerror="window.hacked = 2">',
    '{{ 7 * 7 }} & "quotes\' -->',
]

CONFIG = """
_base_ = {base!r}
data = dict(data_root={data!r}, metainfo=dict(classes={classes!r}), {extra})
val_dataloader = dict(dataset=data)
val_evaluator = dict(ann_file={data!r} + '/annotations/instances_val.json')
optim_wrapper = dict(optimizer=dict(lr={lr}))
"""


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Return a function that makes a work dir whose detections are made instead of detected."""
    base = str(ROOT / 'configs' / 'retinanet_evit_m4_shapes.py')

    def make(name, classes=('a', 'b', 'c', 'd'), num_images=12, seed=0, lr=0.001, names=None,
             data=None, noise=0, kept=1.0, extra=''):  # fmt: skip
        truth, found = synthetic_detections(num_images, len(classes), seed)
        data = data or tmp_path / f'data_{name}'
        for category, label in zip(truth['categories'], classes, strict=True):
            category['name'] = label
        for image, file_name in zip(truth['images'], names or [], strict=False):
            image['file_name'] = file_name
        if not data.exists():
            (data / 'annotations').mkdir(parents=True)
            (data / 'annotations' / 'instances_val.json').write_text(json.dumps(truth))
            (data / 'val').mkdir()
        rng = np.random.default_rng(0)
        for image in truth['images']:
            pixels = rng.integers(120 - noise, 121 + noise, (96, 128, 3)).astype(np.uint8)
            _, encoded = cv2.imencode('.png', pixels)
            (data / 'val' / image['file_name']).write_bytes(encoded.tobytes())
        lines = [train_line(s, 2 / s, loss_cls=1 / s, loss_bbox=1 / s) for s in range(10, 200, 10)]
        lines += [f'{{"coco/bbox_mAP": {0.1 * e}, "step": {e}}}' for e in (1, 2)]
        config = CONFIG.format(
            base=base, data=str(data), classes=tuple(classes), lr=lr, extra=extra
        )
        folder = write_run(tmp_path / name, config, lines)
        (folder / 'epoch_2.pth').write_bytes(name.encode())
        results[name.encode()] = [d for d in found if rng.random() < kept]
        return folder

    results, calls = {}, []

    def evaluate(cfg, checkpoint, device):
        calls.append((checkpoint.name, device))
        return results[checkpoint.read_bytes()]

    monkeypatch.setattr(detections, '_evaluate', evaluate)
    make.calls = calls
    return make


def opened(browser_page, path):
    requests = []
    browser_page.on('request', lambda request: requests.append(request.url))
    browser_page.goto(path.as_uri())
    assert [url for url in requests if not url.startswith('data:')] == [path.as_uri()]
    return browser_page


def test_the_page_of_one_training_in_a_browser(make_run, tmp_path, page):
    run = make_run('run')
    path = write_report([run], tmp_path / 'out', device='cpu')
    assert make_run.calls == [('epoch_2.pth', 'cpu')]
    assert path.stat().st_size < 5_000_000
    opened(page, path)

    charts = page.locator('.chart')
    assert charts.count() == 9
    for place in range(charts.count()):
        box = charts.nth(place).locator('svg').first.bounding_box()
        assert box['width'] > 150 and box['height'] > 40
    links = page.locator('nav a')
    assert links.all_inner_texts() == [
        'Summary', 'Training', 'Classes', 'Errors', 'Confusion', 'Scores', 'Worst images',
        'How it was made',
    ]  # fmt: skip
    for link in links.all():
        assert page.locator(f'section{link.get_attribute("href")}').count() == 1

    made = detections.detect(runs.read_runs([run])[0])
    found = analysis.analyse_detections(made.truth, made.found)
    cells = page.locator('#summary tbody td').all_inner_texts()
    assert cells == [f'{value:.3f}' for value in found.figures.twelve]
    rows = page.locator('#errors tbody tr').all_inner_texts()
    for row, kind, cost, name in zip(rows, tide.KINDS, found.costs, tide.NAMES, strict=False):
        assert row.split('\t')[:3] == [kind, f'{cost:.2f}', str(found.tide['counts'][name])]
    page.locator('#classes summary').click()
    classes = page.locator('#classes tbody tr').all_inner_texts()
    expected = [found.figures.ap[i] for i in np.argsort(-found.figures.ap)]
    assert [float(row.split('\t')[2]) for row in classes] == pytest.approx(expected, abs=6e-4)
    # names and figures of the bars are text
    bars = page.locator('#classes .chart svg').first.text_content()
    assert all(f'{value:.3f}' in bars for value in expected)


def test_the_filters_and_the_score_decide_what_each_image_says(make_run, tmp_path, page):
    run = make_run('run')
    opened(page, write_report([run], tmp_path / 'out'))
    cards = page.locator('.card')
    f1 = [float(text.split()[1]) for text in page.locator('.card h4 span').all_inner_texts()]
    assert len(f1) > 5 and f1 == sorted(f1)
    made = detections.detect(runs.read_runs([run])[0])
    mine = analysis.analyse_detections(made.truth, made.found)
    chosen = [card.name for card in pictures.worst_cards(mine, 90)]
    names = [image['file_name'] for image in mine.truth.images]
    start = page.locator('.score').inner_text()
    selects = {name: page.locator(f'select[name={name}]') for name in ('kind', 'label')}
    assert selects['kind'].locator('option').all_inner_texts() == ['all', *tide.KINDS]
    assert selects['label'].locator('option').all_inner_texts() == ['all', *mine.truth.classes]
    slider = page.locator('input[name=score]')
    for score in (start, '0.9', '0', '0.45'):
        slider.fill(score)
        mine.working_score = float(score)
        mistakes = pictures.find_mistakes(mine)
        sure = analysis.coco_evaluator(
            mine.truth, mine.found,
            detections=(mine.found.score >= float(score)) & (mine.errors.kind != tide.IGNORED),
        )  # fmt: skip
        of_images = sure.image_diagnostics(iou_thr=0.5)['img_summary']
        for name, card in zip(chosen, cards.all(), strict=True):
            image = names.index(name)
            own = mistakes[mistakes[:, 0] == image, 1].tolist()
            counts = [f'{own.count(k)} {kind}' for k, kind in enumerate(tide.KINDS) if k in own]
            assert card.locator('.tags').inner_text() == (' · '.join(counts) or 'no error')
            shown = float(card.locator('.f1').inner_text().removeprefix('F1 '))
            assert shown == pytest.approx(of_images[image]['f1'], abs=0.0051)
        for kind, label in ((5, ''), (4, ''), ('', 1), (5, 1)):
            selects['kind'].select_option(str(kind))
            selects['label'].select_option(str(label))
            fits = np.all([np.ones(len(mistakes), bool), *(
                mistakes[:, column] == value
                for column, value in ((1, kind), (2, label)) if value != ''
            )], axis=0)  # fmt: skip
            expected = {names[image] for image in mistakes[fits, 0]}
            seen = [card.is_visible() for card in cards.all()]
            assert seen == [name in expected for name in chosen]
            assert page.locator('.shown').inner_text() == f'{sum(seen)} of {len(seen)} images'
        for select in selects.values():
            select.select_option('')
        assert all(card.is_visible() for card in cards.all())
        shown = page.evaluate(
            """() => [...document.querySelectorAll('[data-score]')].map(
                (box) => [Number(box.dataset.score), box.style.display !== 'none'])"""
        )
        assert all(visible == (own >= float(score)) for own, visible in shown)
        # the colours of the objects are those that Python draws at this score
        states = page.evaluate(
            """() => [...document.querySelectorAll('[data-found] rect')].map(
                (box) => box.getAttribute('class').split('is-')[1])"""
        )
        drawn = [pictures.make_card(names.index(name), mine, mistakes) for name in chosen]
        boxes = [box for card in drawn for box in card.truth]
        assert states == [box.state for box in boxes if box.score is not None or box.wrong]
        assert len(states) > 5


def test_a_picture_is_enlarged_with_its_boxes(make_run, tmp_path, page):
    opened(page, write_report([make_run('run')], tmp_path / 'out'))
    picture, dialog = page.locator('.card .pair svg').nth(1), page.locator('dialog')
    name = page.locator('.card h4').first.inner_text()
    small = picture.bounding_box()
    boxes = picture.locator('rect').count()
    for use in (picture.click, lambda: picture.press('Enter')):
        use()
        large = dialog.locator('svg').nth(1)
        assert large.bounding_box()['width'] > 2 * small['width']
        assert large.locator('rect').count() == boxes > 0
        assert dialog.locator('h4').inner_text() == name
        dialog.get_by_role('button', name='Close').click()
        assert not dialog.is_visible()


@pytest.mark.parametrize('number', [1, 3])
def test_nothing_is_cut_off_on_a_phone(make_run, tmp_path, page, number):
    names = ('short', 'a_training_with_a_long_name_of_its_own', 'third')[:number]
    made = [make_run(name, data=tmp_path / 'data', num_images=6) for name in names]
    page.set_viewport_size({'width': 390, 'height': 800})
    opened(page, write_report(made, tmp_path / 'out'))
    for summary in page.locator('#classes summary').all():
        summary.click()
    beyond = page.evaluate(
        """() => [...document.querySelectorAll('main *')].filter((part) =>
            !part.closest('pre, svg svg *') && part.getBoundingClientRect().right > innerWidth
        ).map((part) => part.outerHTML.slice(0, 80))"""
    )
    assert beyond == []
    scrolled = page.evaluate(
        """() => [...document.querySelectorAll('.scroll')].filter(
            (part) => part.scrollWidth > part.clientWidth).map((part) => part.innerText)"""
    )
    assert scrolled == []
    # each figure of COCO has its name beside it
    cells = page.locator('#summary tbody td')
    assert cells.count() == 12 * number
    columns = [cell.get_attribute('data-column') for cell in cells.all()[:12]]
    assert columns[:3] == ['AP', 'AP50', 'AP75'] and len(set(columns)) == 12
    # text of the charts, on the screen: 8 pixels are legible
    heights = page.evaluate(
        """() => [...document.querySelectorAll('.chart svg text')].map((text) => {
            const place = text.getScreenCTM();
            return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(place.a, place.b);
        })"""
    )
    assert len(heights) > 50 and min(heights) > 8


def test_hostile_names_are_text(make_run, tmp_path, page):
    run = make_run(
        '<img src=x onerror=hacked()>', (*HOSTILE, 'd'), names=['<b>x.png', "';alert(1);'.png"]
    )
    with (run / 'tiny.py').open('a') as config:
        config.write(f'note = {HOSTILE[0]!r}\n')
    page.on('dialog', lambda dialog: pytest.fail(dialog.message))
    opened(page, write_report([run], tmp_path / 'out'))
    assert page.evaluate('window.hacked') is None
    assert page.locator('main img, main b:has-text("x.png")').count() == 0
    assert page.locator('h1').inner_text() == f'Training report: {run.name}'
    page.locator('#classes summary').click()
    table = page.locator('#classes tbody').inner_text()
    assert all(name in table for name in HOSTILE)
    assert HOSTILE[2] in page.locator('#classes .chart svg').first.text_content()
    assert page.locator('.card h4', has_text='<b>x.png').count() == 1
    page.locator('#made summary').click()
    assert HOSTILE[0] in page.locator('#made pre').inner_text()


def test_what_changed_between_two_trainings(make_run, tmp_path, page):
    before = make_run('before')
    after = make_run('after', lr=0.01, data=tmp_path / 'data_before', kept=0.7)
    opened(page, write_report([before, after], tmp_path / 'out', compare=True))
    both = [detections.detect(run) for run in runs.read_runs([before, after])]
    one, two = (analysis.analyse_detections(d.truth, d.found) for d in both)
    tables = [
        [row.split('\t') for row in table.locator('tbody tr').all_inner_texts()]
        for table in page.locator('#changes table').all()
    ]
    figures, costs, classes = tables[:3]
    config = page.locator('#changes pre').inner_text().splitlines()
    lines = [line for line in config if 'lr=0.0' in line and line[0] in '-+']
    assert [line[0] for line in lines] == ['-', '+'] and 'lr=0.01' in lines[1]
    for row, old, new in zip(figures, one.figures.twelve, two.figures.twelve, strict=True):
        mark = '▲' if new > old else '▼'
        change = f'{mark} {new - old:+.3f}' if abs(new - old) >= 5e-4 else '±0'
        assert row[1:] == [f'{old:.3f}', f'{new:.3f}', change]
    assert [row[0] for row in costs] == list(tide.KINDS)
    changes = dict(zip(one.truth.classes, two.figures.ap - one.figures.ap, strict=True))
    assert [row[0] for row in classes] == sorted(changes, key=changes.get)

    change = two.f1 - one.f1
    expected = [i for i in np.argsort(change, kind='stable') if change[i] < 0][:6]
    assert expected
    cards = page.locator('#changes .cards').first.locator('h4').all_inner_texts()
    assert [text.split()[0] for text in cards] == [
        one.truth.images[i]['file_name'] for i in expected
    ]
    assert page.locator('#changes .cards').first.locator('svg').count() == 3 * len(expected)
    # of curves, both are drawn, each in its colour
    legend = page.locator('#training .chart svg').first.text_content()
    assert 'before' in legend and 'after' in legend
    best = page.locator('#summary td.best').count()
    assert best >= 12


def test_runs_on_other_data_are_compared_without_images(make_run, tmp_path):
    pair = [make_run('one'), make_run('two', classes=('a', 'x'), seed=1)]
    html = write_report(pair, tmp_path / 'out', compare=True).read_text()
    assert 'different images' in html and html.count('data-objects=') > 10
    assert re.search(r'<h3>Classes</h3>.*?\ba\b.*?Images that got', html, re.DOTALL)


def test_detections_are_made_once_for_a_checkpoint_and_kept_whole(make_run, tmp_path):
    def detect(folder, **options):
        return detections.detect(runs.read_runs([folder])[0], **options)

    run = make_run('run')
    cache = run / detections.CACHE
    untouched = {p: p.stat().st_mtime_ns for p in run.rglob('*') if p.is_file()}
    write_report([run], tmp_path / 'out')
    detect(run)
    assert len(make_run.calls) == 1
    assert {p: p.stat().st_mtime_ns for p in untouched} == untouched
    assert {p for p in run.rglob('*') if p.is_file()} - set(untouched) == {cache}
    cache.write_text(cache.read_text()[:-100])  # half a file is none
    detect(run)
    assert len(make_run.calls) == 2 and json.loads(cache.read_text())['results']
    with (run / 'tiny.py').open('a') as config:
        config.write('model = dict(test_cfg=dict(score_thr=0.3))\n')
    detect(run)  # another config finds other boxes
    assert len(make_run.calls) == 3
    detect(run, cfg_options={'model.test_cfg.score_thr': 0.4})
    assert len(make_run.calls) == 4


def test_images_that_are_not_validated_on_are_not_missed(make_run, monkeypatch):
    run = make_run('run', extra='indices=5')
    monkeypatch.setattr(detections, '_evaluate', lambda *_: [])
    truth = detections.detect(runs.read_runs([run])[0]).truth
    assert [image['id'] for image in truth.images] == [1, 2, 3, 4, 5]
    assert set(truth.image.tolist()) <= set(range(5))


def test_a_work_dir_that_cannot_be_written_to_costs_only_the_next_time(make_run, caplog):
    run = make_run('run')
    (run / detections.CACHE).mkdir()
    assert len(detections.detect(runs.read_runs([run])[0]).found.score) > 0
    assert list((run / detections.CACHE).iterdir()) == []
    assert not list(run.glob('*.partial'))


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ("val_dataloader = dict(dataset=dict(type='VOCDataset'))\n", 'needs a CocoDataset and'),
        ("val_evaluator = None\n", 'needs a CocoDataset and'),
    ],
)  # fmt: skip
def test_what_has_no_boxes_is_said(make_run, change, said):
    run = make_run('run')
    with (run / 'tiny.py').open('a') as config:
        config.write(change)
    with pytest.raises(DataError, match=said):
        detections.detect(runs.read_runs([run])[0])


def test_wrong_options_are_named(make_run):
    run = runs.read_runs([make_run('run')])[0]
    with pytest.raises(ConfigError, match='cannot be applied'):
        detections.detect(run, cfg_options={'val_dataloader.dataset.pipeline.9.x': 1})


def test_what_is_missing_is_said_on_the_page(make_run, tmp_path, page):
    bare = make_run('bare')
    (bare / 'epoch_2.pth').unlink()
    moved = make_run('moved', num_images=8)
    gone = make_run('gone', num_images=6)
    (tmp_path / 'data_moved').rename(tmp_path / 'elsewhere')
    for image in (tmp_path / 'data_gone' / 'val').iterdir():
        image.unlink()
    new = write_run(tmp_path / 'new', 'model = dict()\n')
    opened(page, write_report([bare, moved, gone, new], tmp_path / 'out'))
    notes = page.locator('.note').all_inner_texts()
    assert any(n.startswith('bare:') and 'no checkpoint yet' in n for n in notes)
    assert any(n.startswith('moved:') and 'not exist' in n and 'data_root=' in n for n in notes)
    assert any('cannot be read, so only the boxes' in n for n in notes)
    assert any(n.startswith('new:') and 'has not logged anything yet' in n for n in notes)
    assert any(n.startswith('new:') and 'No detections are shown' in n for n in notes)
    assert page.locator('.empty').count() > 2
    assert page.locator('.tile').count() == 4 and page.locator('#summary tbody tr').count() == 1
    # said where the data are now, the page has them
    options = {
        'val_dataloader.dataset.data_root': str(tmp_path / 'elsewhere'),
        'val_evaluator.ann_file': str(tmp_path / 'elsewhere/annotations/instances_val.json'),
    }
    html = write_report([moved], tmp_path / 'out', cfg_options=options).read_text()
    assert 'No detections are shown' not in html and 'data:image/webp' in html


def test_a_page_stays_under_its_size_whatever_the_pictures(make_run, tmp_path, monkeypatch):
    run = make_run('run', classes=tuple(f'class {i}' for i in range(120)), num_images=50, noise=100)
    whole = write_report([run], tmp_path / 'whole').read_text()
    assert len(whole) < 5_000_000
    assert whole.count('no picture') == 0
    assert 'The weakest 80 of 120 are drawn' in whole
    section = re.search(r'<section id="classes">.*?</section>', whole, re.DOTALL)[0]
    chart, table = section.split('<table>')
    names = re.findall(r'<th scope="row">(.*?)<', table)
    assert [f'>{name}</text>' in chart for name in names] == [False] * 40 + [True] * 80
    assert 25 < whole.count('<article') <= page_module.MAX_IMAGES
    monkeypatch.setattr(page_module, 'MAX_BYTES', len(whole) - 200_000)
    less = write_report([run], tmp_path / 'less').read_text()
    assert len(less.encode()) < page_module.MAX_BYTES
    assert 0 < less.count('data:image/webp') < whole.count('data:image/webp')


def test_thumbnails_have_the_images_colours(tmp_path):
    Image.new('RGB', (60, 40), (250, 120, 10)).save(tmp_path / 'a.png')
    card = pictures.Card('a.png', tmp_path / 'a.png', 0.0, (60, 40), [], [], {}, [], [])
    addresses, unreadable = pictures.add_thumbnails([card], 10**6)
    picture = Image.open(io.BytesIO(base64.b64decode(addresses[card.thumbnail].split(',')[1])))
    assert picture.size == (60, 40) and not unreadable
    np.testing.assert_allclose(picture.getpixel((30, 20)), (250, 120, 10), atol=8)


def test_pictures_cover_every_class_and_kind():
    mine = analysed(*synthetic_detections(20, num_classes=4, seed=5))
    mistakes = pictures.find_mistakes(mine)
    chosen = pictures.choose(mine.f1, mistakes, 12)
    assert len(chosen) == 12 and mine.f1[chosen].tolist() == sorted(mine.f1[chosen])
    assert mine.f1[chosen[0]] == mine.f1.min()
    everything = pictures.choose(mine.f1, mistakes, 90)
    for column in (1, 2):
        shown = np.isin(mistakes[:, 0], everything)
        assert set(mistakes[shown, column].tolist()) == set(mistakes[:, column].tolist())
    # an image has a mistake where its F1 is not 1
    assert set(mistakes[:, 0].tolist()) == set(np.flatnonzero(mine.f1 < 1).tolist())


def test_training_curves_are_of_each_run_and_of_the_parts_of_one(drawn):
    def shown(name, factor, **steps):
        steps = {key: [(10, factor * value)] for key, value in steps.items()}
        evaluations = {'coco/bbox_mAP': [(1, factor / 8), (2, -1.0)]}
        run = runs.Run(name, Path(), Config(), steps, evaluations, {})
        return page_module.Shown(run, '#000000')

    def charts_of(*shown):
        drawn.clear()
        names = list(page_module._training_charts(shown))
        return names, [
            {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}
            for figure in drawn
        ]

    one = shown('one', 1, loss=5, lr=0.5, loss_cls=3, loss_bbox=2, memory=9)
    two = shown('two', 2, loss=5, lr=0.5, loss_cls=3)
    names, curves = charts_of(one)
    assert names == ['loss', 'lr', 'parts', 'ap']
    assert curves == [
        {'one': [[10, 5]]}, {'one': [[10, 0.5]]}, {'cls': [[10, 3]], 'bbox': [[10, 2]]},
        {'one': [[1, 0.125]]},
    ]  # fmt: skip
    labels = [(f.axes[0].get_xlabel(), f.axes[0].get_ylabel()) for f in drawn]
    assert labels == [
        ('iteration', 'loss'), ('iteration', 'learning rate'), ('iteration', 'loss'),
        ('epoch', 'AP on the validation set'),
    ]  # fmt: skip
    assert [f.axes[0].get_lines()[0].get_marker() for f in drawn] == ['', '', '', 'o']
    names, curves = charts_of(one, two)
    assert names == ['loss', 'lr', 'ap']
    assert curves[0] == {'one': [[10, 5]], 'two': [[10, 10]]}
    assert charts_of(two)[0] == names  # one part is the loss itself


def test_findings_of_two_runs_with_other_classes(drawn):
    found = [(0, [0, 0, 10, 6], 0.85), (0, FAR, 0.15)]
    one = analysed(*a_case([(0, A), (2, B)], found, classes=3))
    two = analysed(*a_case([(0, A), (1, B), (3, FAR)], [(3, FAR, 0.5), (1, B, 0.7)], classes=4))
    shown = [
        page_module.Shown(runs.Run(name, Path(), Config(), {}, {}, {}), colour, analysis=mine)
        for name, colour, mine in (('one', '#ff0000', one), ('two', '#00ff00', two))
    ]
    content = page_module._findings(shown)
    # the best of the first run first, those that it does not know last
    assert content['class_names'] == ['class 0', 'class 2', 'class 1', 'class 3']
    assert [list(own) for own in content['of_classes']] == [list(one.truth.classes),
                                                            list(two.truth.classes)]  # fmt: skip
    pairs = zip(one.figures.twelve, two.figures.twelve, strict=True)
    best = [max((v for v in pair if not np.isnan(v)), default=np.nan) for pair in pairs]
    np.testing.assert_array_equal(content['best'], best)
    classes, costs, scores, *recalls = (figure.axes[0] for figure in drawn[:5])

    def widths(axis):
        return [[bar.get_width() for bar in container] for container in axis.containers]

    nan = np.nan
    np.testing.assert_allclose(widths(classes), [[0.3, 0, nan, nan], [0, nan, 1, 1]])
    assert widths(costs) == [one.costs, two.costs]
    colours = [to_hex(container[0].get_facecolor()) for container in costs.containers]
    dashed, *lines = scores.get_lines()
    assert colours == [line.get_color() for line in lines] == ['#ff0000', '#00ff00']
    assert dashed.get_linestyle() == '--'
    points = [line.get_xydata() for line in lines]
    np.testing.assert_allclose(points[0], [[0.15, 0], [0.85, 1]])
    np.testing.assert_allclose(points[1], [[0.5, 1], [0.7, 1]])
    for axis, mine in zip(recalls, (one, two), strict=True):
        assert (axis.get_xlabel(), axis.get_ylabel()) == ('recall', 'precision')
        for line in axis.get_lines():
            values = mine.figures.curves[line.get_label().removeprefix('IoU ')]
            np.testing.assert_allclose(line.get_xdata(), np.arange(101) / 100)
            np.testing.assert_array_equal(line.get_ydata(), values)
    assert [figure.axes[0].get_ylabel() for figure in drawn[5:]] == ['true class'] * 2
    assert len(drawn[6].axes[0].get_yticklabels()) == 5


def test_the_pictures_are_shared_between_the_runs(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, 'MAX_IMAGES', 7)
    pair = [make_run('one', noise=100), make_run('two', noise=100, seed=1)]

    def galleries():
        html = write_report(pair, tmp_path / 'out').read_text()
        return html, html.split('class="gallery"')[1:]

    whole, parts = galleries()
    assert [part.count('<article') for part in parts] == [3, 3]
    sizes = [len(text) for text in re.findall(r'href="(data:image/webp[^"]*)"', whole)]
    assert len(sizes) == 6
    room = page_module.MARGIN + len(whole.encode()) - sum(sizes[3:])
    monkeypatch.setattr(page_module, 'MAX_BYTES', room)
    assert [0 < part.count('href="#thumb') < 6 for part in galleries()[1]] == [True, True]


def test_two_runs_are_compared_where_one_has_no_detections(make_run, tmp_path):
    pair = [make_run('one'), make_run('two', lr=0.5)]
    (pair[1] / 'epoch_2.pth').unlink()
    html = write_report(pair, tmp_path / 'out', compare=True).read_text()
    changes = re.search(r'<section id="changes">.*?</section>', html, re.DOTALL)[0]
    assert 'lr=0.5' in changes and 'Metrics' not in changes
    assert 'no checkpoint yet' in html


def test_the_page_fits_a_phone(make_run, tmp_path, page):
    page.set_viewport_size({'width': 375, 'height': 800})
    opened(page, write_report([make_run('run')], tmp_path / 'out'))
    assert page.evaluate('document.documentElement.scrollWidth') <= 375
    figures, facts = (page.locator(f'.tile {part}').first for part in ('.figures', 'dl'))
    above, below = figures.bounding_box(), facts.bounding_box()
    assert above['y'] + above['height'] <= below['y']


@pytest.mark.slow
def test_a_real_training_is_evaluated_and_shown(tmp_path, page):
    from evit_mm.runner.train import train

    data = make_shapes(tmp_path / 'set', 16, 8, size=(96, 80), quiet=True)
    config = write_config(tmp_path, data, 'train_cfg.update(max_epochs=1, val_interval=1)\n')
    work = tmp_path / 'work'
    train(config, work_dir=str(work), seed=1, device='cpu')
    before = {p.relative_to(work) for p in work.rglob('*')}
    opened(page, write_report([work], tmp_path / 'out', device='cpu'))
    assert {p.relative_to(work) for p in work.rglob('*')} - before == {
        (work / detections.CACHE).relative_to(work)
    }
    run = runs.read_runs([work])[0]
    cells = page.locator('#summary tbody td').all_inner_texts()
    logged = {k.removeprefix('coco/'): v[-1][1] for k, v in run.evaluations.items()}
    names = ['bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'bbox_mAP_s', 'bbox_mAP_m']
    assert logged['bbox_mAP_50'] > 0
    assert [float(cell) for cell in cells[:5]] == [logged[name] for name in names]
    made = page.locator('#made').inner_text()
    assert 'seed\t1\n' in made and 'versions\tevit_mm' in made  # of its summary.json
    assert page.locator('.card image, .card use').count() > 0


def test_commands_of_the_docs_page(make_run, tmp_path, monkeypatch):
    for name in ('retinanet_evit_m4_shapes', 'a', 'b'):
        make_run(f'work_dirs/{name}', num_images=6)
    shutil.copytree(tmp_path / 'data_work_dirs' / 'a', tmp_path / 'DIR')
    monkeypatch.chdir(tmp_path)
    text = '\n'.join(blocks(ROOT / 'docs' / 'report.md', 'bash')).replace('\\\n', ' ')
    commands = [shlex.split(line, comments=True) for line in text.strip().splitlines() if line]
    assert len(commands) == 3
    for python, tool, *arguments in commands:
        assert python == 'python'
        monkeypatch.setattr(sys, 'argv', [tool, *arguments])
        runpy.run_path(str(ROOT / tool), run_name='__main__')
        html = Path('report', 'index.html').read_text()
        assert 'Worst images' in html
        assert ('What changed' in html) == ('--compare' in arguments)
    assert 'No detections are shown' not in html
    # the folder of the last command was named, where the config names another
    assert len(make_run.calls) == 4
