"""A local page on which one drops a picture and sees what a detector finds; needs gradio.

The page and the server talk to nobody else: no telemetry, no fonts or scripts from elsewhere.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import IMAGE_SUFFIXES, read_image
from ..errors import ConfigError, DataError
from . import Detector, load_detector_config

HOST, PORT = '127.0.0.1', 7860
COLUMNS = ('class', 'score', 'x', 'y', 'width', 'height')
MAX_UPLOAD = '100mb'
FONTS = ('system-ui', 'sans-serif'), ('ui-monospace', 'monospace')
STYLE = """
footer { display: none !important }
#picture img { width: 100%; height: 100%; object-fit: contain }
"""
CACHE = 600, 3600  # seconds: how often uploads are tidied up, and how old they get


@dataclass
class Found:
    """What a detector found in a picture, whatever the threshold.

    Attributes:
        name: The picture's name.
        pixels: ``(H, W, 3)`` BGR.
        detector: The detector.
        sample: mmdet's sample with all detections.
        milliseconds: What the detector took.
    """

    name: str
    pixels: np.ndarray
    detector: Detector
    sample: Any
    milliseconds: float


def read_upload(file: str) -> np.ndarray:
    """Return an uploaded file's pixels, ``(H, W, 3)`` BGR.

    Raises:
        DataError: It cannot be decoded.
    """
    pixels = read_image(file)
    if pixels is None:
        raise DataError(f"'{Path(file).name}' cannot be decoded as an image")
    return pixels


def detect(detector: Detector, name: str, pixels: np.ndarray) -> Found:
    """Run a detector on a picture.

    Raises:
        DataError: It is too thin to be resized.
    """
    start = time.perf_counter()
    (sample,) = detector.detect([detector.prepare(pixels)])
    return Found(name, pixels, detector, sample, 1000 * (time.perf_counter() - start))


def show(found: Found | None, score_thr: float) -> tuple[np.ndarray | None, list, str]:
    """Draw what was found from a score on, without running the network.

    Returns:
        The picture ``(H, W, 3)`` RGB, a row of :data:`COLUMNS` of each detection, the surest
        first, and a sentence.
    """
    if found is None:
        return None, [], ''
    drawn = found.detector.draw(found.pixels, found.sample, score_thr)
    instances, rows = found.sample.pred_instances, []
    for index in instances.scores.argsort(descending=True, stable=True).tolist():
        score, (x1, y1, x2, y2) = float(instances.scores[index]), instances.bboxes[index].tolist()
        if score >= score_thr:
            sides = (round(value, 1) for value in (x1, y1, x2 - x1, y2 - y1))
            label = found.detector.classes[int(instances.labels[index])]
            rows.append([label, round(score, 3), *sides])
    height, width = found.pixels.shape[:2]
    took = f'{width} x {height} pixels, {found.milliseconds:.0f} ms'
    return drawn[..., ::-1], rows, f"{len(rows)} detections in '{found.name}' ({took})"


def load_detectors(
    pairs: Sequence[str],
    device: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> dict[str, Detector]:
    """Load detectors from ``[config, checkpoint, config, checkpoint, ...]``.

    Returns:
        Detectors by ``CONFIG · CHECKPOINT``, the files' stems, numbered where two are alike.

    Raises:
        EvitError: A config has no checkpoint beside it, or one cannot be used.
    """
    if not pairs or len(pairs) % 2:
        raise ConfigError('give a CONFIG and a CHECKPOINT, or several such pairs')
    detectors: dict[str, Detector] = {}
    for config, checkpoint in zip(pairs[::2], pairs[1::2], strict=True):
        name = f'{Path(config).stem} · {Path(checkpoint).stem}'
        if name in detectors:
            name = f'{name} ({len(detectors) + 1})'
        detectors[name] = Detector(load_detector_config(config, cfg_options), checkpoint, device)
    return detectors


def build_page(detectors: Mapping[str, Detector], score_thr: float = 0.3) -> Any:
    """Lay the page out.

    Args:
        detectors: By the names that one chooses from.
        score_thr: Where the threshold stands at first.

    Returns:
        A ``gradio.Blocks``.

    Raises:
        ConfigError: gradio is not installed.
    """
    gr = _import_gradio()
    names = list(detectors)

    def upload(file: str, model: str, threshold: float) -> tuple:
        try:
            found = detect(detectors[model], Path(file).name, read_upload(file))
        except DataError as error:
            return None, None, None, [], f'Not used: {error}.'
        return None, found, *show(found, threshold)  # None: room for the next picture

    def choose(found: Found | None, model: str, threshold: float) -> tuple:
        if found is not None:
            found = detect(detectors[model], found.name, found.pixels)
        return found, *show(found, threshold)

    # one event at a time, since networks and visualizers are shared
    event = {'api_name': False, 'concurrency_limit': 1, 'concurrency_id': 'detectors'}
    with gr.Blocks(
        title='EfficientViT detections', analytics_enabled=False, delete_cache=CACHE
    ) as page:
        found = gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                kinds = list(IMAGE_SUFFIXES)
                file = gr.File(label='Drop a picture here', file_types=kinds, height=150)
                model = gr.Radio(names, value=names[0], label='Checkpoint')
                threshold = gr.Slider(0, 1, score_thr, step=0.01, label='Lowest score shown')
                said = gr.Textbox(label='Found', interactive=False, lines=2, elem_id='said')
            with gr.Column(scale=3):
                picture = gr.Image(
                    label='Picture',
                    interactive=False,
                    format='png',
                    height=480,
                    buttons=['download'],
                    elem_id='picture',
                )
        table = gr.Dataframe(headers=list(COLUMNS), label='Detections', interactive=False)
        shown = [picture, table, said]
        file.upload(upload, [file, model, threshold], [file, found, *shown], **event)
        model.change(choose, [found, model, threshold], [found, *shown], **event)
        threshold.change(show, [found, threshold], shown, show_progress='hidden', **event)
    return page


def serve(page: Any, host: str = HOST, port: int | None = PORT) -> str:
    """Serve a page from a thread, until ``page.close()`` or the end of the process.

    Args:
        page: What :func:`build_page` returned.
        host: Address to listen on; the default is heard on this machine alone.
        port: Port; None takes a free one.

    Returns:
        The page's address.

    Raises:
        ConfigError: The port is taken, or the address is not this machine's.
    """
    gr = _import_gradio()
    fonts, mono = FONTS
    try:
        # gradio itself tries a hundred ports, each for seconds
        with socket.create_server((host, port or 0)) as free:
            port = free.getsockname()[1]
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            footer_links=[],
            css=STYLE,
            theme=gr.themes.Base(font=fonts, font_mono=mono),
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,  # a second server, of Node.js
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
        )
    except (OSError, OverflowError) as error:  # the latter from a port beyond 65535
        raise ConfigError(
            f'cannot listen on {host} at port {port}; choose another by --port ({error})'
        ) from None
    return address


def _import_gradio() -> Any:
    # read while it is imported; both keep it from writing home, or anything down
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    os.environ['GRADIO_RUN_HISTORY'] = 'False'
    os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')
    try:
        import gradio
    except ImportError:
        raise ConfigError("the demo needs gradio: pip install 'evit_mm[demo]'") from None
    return gradio
