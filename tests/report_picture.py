"""Draw the picture of docs/report.md: python -m tests.report_picture WORK_DIR FILE.png.

What a browser shows of the report on a training: the beginning, and the worst images.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from evit_mm.report import write_report

WIDTH = 1240
# what is scrolled to, and how many pixels from there on
PARTS = (('#summary', 566), ('#errors h2', 404), ('#images h2', 560))


def draw(page_file: Path, out: Path) -> None:
    """Stack the parts of a page into one picture of few colours."""
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        page = browser.new_page(viewport={'width': WIDTH, 'height': 900})
        page.goto(page_file.resolve().as_uri())
        page.add_style_tag(content='html { scroll-behavior: auto !important; }')
        pictures = []
        for selector, height in PARTS:
            if pictures:  # the contents stand at the head alone
                page.add_style_tag(content='nav { visibility: hidden; }')
            page.set_viewport_size({'width': WIDTH, 'height': height})
            page.eval_on_selector(selector, 'place => place.scrollIntoView()')
            page.wait_for_timeout(300)
            pictures.append(Image.open(io.BytesIO(page.screenshot())).convert('RGB'))
        browser.close()
    whole = Image.new('RGB', (WIDTH, sum(picture.height for picture in pictures)))
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    # the palette that covers most keeps the thin coloured lines
    palette = whole.quantize(256, method=Image.Quantize.MAXCOVERAGE)
    whole.quantize(palette=palette).save(out, optimize=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='a training on the built-in shapes')
    parser.add_argument('out', type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        draw(write_report([args.work_dir], folder), args.out)
