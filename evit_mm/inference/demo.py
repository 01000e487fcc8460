"""A local web page that shows the detections in an uploaded picture. Needs gradio.

The page and the server use no other host: no telemetry, and no external fonts or scripts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset_configs import image_suffixes
from ..errors import ConfigError, DataError, EvitError
from ..runner.config import KINDS
from ..utils.package_files import find_config
from ..utils.text import counted
from .coco import coco_ids
from .detector import Detector, shown_instances

HOST, PORT = '127.0.0.1', 7860
COLUMNS = ('class', 'score', 'x', 'y', 'width', 'height')
FONTS = ('system-ui', 'sans-serif'), ('ui-monospace', 'monospace')
MAX_EXAMPLES = 3
TITLE = '# Object detection with EfficientViT'
HOW = 'Drop a picture or click on an example. Then move the score or choose another model.'
# a picture fits the screen, and its empty place is low
CSS = (
    '#picture { min-height: 12rem; } #picture img { max-height: 75vh; object-fit: contain; } '
    'fieldset label { max-width: 100%; } fieldset label span { overflow-wrap: anywhere; }'
)
CACHE = 600, 3600  # seconds: how often old uploads are deleted, and their maximum age


@dataclass
class Found:
    """All detections in a picture, for any score threshold."""

    name: str
    pixels: np.ndarray  # (H, W, 3) BGR, uint8, for people
    detector: Detector
    sample: Any
    milliseconds: float


def detect(detector: Detector, file: str) -> Found:
    """Run a detector on a picture.

    Raises:
        DataError: The picture cannot be decoded or is too thin for the pipeline.
    """
    name = Path(file).name
    try:
        loaded = detector.pipeline.load(file)
        start = time.perf_counter()
        prepared = detector.pipeline.pack(loaded)
    except DataError as error:
        raise DataError(f"'{name}': {error}") from None
    (sample,) = detector.detect([prepared])
    took = 1000 * (time.perf_counter() - start)
    return Found(name, prepared['picture'], detector, sample, took)


def show(found: Found | None, score_thr: float) -> tuple[np.ndarray | None, list, str]:
    """Return the RGB picture, the table rows and a text, for scores of at least ``score_thr``."""
    if found is None:
        return None, [], ''
    classes = found.detector.classes
    instances = shown_instances(found.sample, score_thr)
    order = instances.scores.argsort(descending=True, stable=True)
    rows = [
        [classes[label], round(score, 3), *np.round([x1, y1, x2 - x1, y2 - y1], 1).tolist()]
        for (x1, y1, x2, y2), score, label in zip(
            *(x[order].tolist() for x in (instances.bboxes, instances.scores, instances.labels)),
            strict=True,
        )
    ]
    height, width = found.pixels.shape[:2]
    took = f'{width} x {height} pixels, {found.milliseconds:.0f} ms'
    drawn = found.detector.draw(found.pixels, found.sample, score_thr)
    return drawn[..., ::-1], rows, f"{counted(len(rows), 'detection')} in '{found.name}' ({took})"


def example_pictures(detector: Detector) -> list[Path]:
    """Return a few images of the config's test set, or an empty list if it is not there."""
    ids, _ = coco_ids(detector.cfg, detector.classes)
    return list(islice((path for path in ids if path.is_file()), MAX_EXAMPLES))


def load_detectors(
    models: Sequence[str],
    device: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> dict[str, Detector]:
    """Load the detectors of ``[CONFIG] MODEL [[CONFIG] MODEL ...]``, by display name.

    A model has the config before it, if there is one. See :class:`Detector`.
    """
    given = list(_with_configs(models))
    names = [
        f'{Path(config).stem} · {Path(m).name}' if config else Path(m).name for config, m in given
    ]
    if len({*names}) < len(names):  # of two work dirs
        names = [f'{config} · {model}' if config else model for config, model in given]
    detectors = [
        Detector(model, config, device=device, cfg_options=cfg_options) for config, model in given
    ]
    return dict(zip(names, detectors, strict=True))


def _with_configs(models: Sequence[str]) -> Iterator[tuple[str | None, str]]:
    """Yield each model with the config before it, or None."""
    config = None
    for name in [*models, '']:
        if config and (not name or _is_config(name)):
            raise ConfigError(f"the config '{config}' needs a MODEL after it")
        if _is_config(name):
            config = name
        elif name:
            yield config, name
            config = None


def _is_config(name: str) -> bool:
    with suppress(ConfigError):
        return find_config(name).suffix in KINDS  # also the name of a config of this package
    return Path(name).suffix in KINDS


def build_page(detectors: Mapping[str, Detector], score_thr: float = 0.3) -> Any:
    """Build the page as a ``gradio.Blocks`` with the initial threshold ``score_thr``."""
    gr = _import_gradio()
    names = list(detectors)

    def run(file: str | None, model: str, threshold: float) -> tuple:
        if file is None:
            return None, *show(None, threshold)
        try:
            found = detect(detectors[model], file)
        except EvitError as error:
            return None, None, [], f'Error: {error}.'
        return found, *show(found, threshold)

    # one event at a time, because the events share networks and visualizers
    event = {'api_name': False, 'concurrency_limit': 1, 'concurrency_id': 'detectors'}
    with gr.Blocks(title='EfficientViT detections', delete_cache=CACHE) as page:
        gr.Markdown(f'{TITLE}\n\n{HOW}')
        picture_file, found = gr.State(), gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                kinds = sorted({s for d in detectors.values() for s in image_suffixes(d.cfg)})
                upload = gr.File(label='Drop a picture here', file_types=kinds, height=150)
                model = gr.Radio(names, value=names[0], label='Model')
                threshold = gr.Slider(0, 1, score_thr, step=0.01, label='Lowest score shown')
                examples = _examples(gr, next(iter(detectors.values())))
                said = gr.Textbox(label='Found', interactive=False, lines=2, elem_id='said')
            with gr.Column(scale=3):
                picture = gr.Image(
                    label='Picture',
                    interactive=False,
                    format='png',
                    buttons=['download'],
                    elem_id='picture',
                )
        table = gr.Dataframe(headers=list(COLUMNS), label='Detections', interactive=False)
        shown = [picture, table, said]
        # None clears the upload field for the next picture
        upload.upload(lambda file: (None, file), upload, [upload, picture_file], api_name=False)
        if examples is not None:
            examples.click(lambda row: row[0], examples, picture_file, api_name=False)
        gr.on(
            [picture_file.change, model.change],
            run,
            [picture_file, model, threshold],
            [found, *shown],
            **event,
        )
        threshold.change(show, [found, threshold], shown, show_progress='hidden', **event)
    return page


def _examples(gr: Any, detector: Detector) -> Any:
    """Return a ``gradio.Dataset`` of example pictures, or None."""
    pictures = example_pictures(detector)
    if not pictures:
        return None
    return gr.Dataset(
        components=[gr.Image(type='filepath', visible=False)],
        samples=[[str(path)] for path in pictures],
        label='Examples from the test set of the config',
    )


def serve(page: Any, host: str = HOST, port: int | None = PORT) -> str:
    """Serve a page from a thread until ``page.close()``, and return its address."""
    gr = _import_gradio()
    fonts, mono = FONTS
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        css=CSS,
        theme=gr.themes.Base(font=fonts, font_mono=mono),
    )
    return address


def _import_gradio() -> Any:
    # gradio reads these on import; they disable telemetry and the run history
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['GRADIO_RUN_HISTORY'] = 'False'
    os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')
    try:
        import gradio
    except ImportError:
        raise ConfigError(
            "the demo needs gradio; install it with: pip install 'evit_mm[demo]'"
        ) from None
    return gradio
