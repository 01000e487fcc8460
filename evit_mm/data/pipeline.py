"""Read images as the pipeline of a config reads them.

Every tool reads images with the loading steps of a pipeline: its first step, and the steps
directly after it whose names start with ``Load`` and that load no annotations. Examples are
``LoadImageFromFile`` with its ``color_type``, ``LoadMultiChannelImageFromFiles``, and registered
transforms that read TIFF or NumPy files.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import cv2
import mmcv
import mmcv.transforms  # noqa: F401 (registers LoadImageFromFile)
import numpy as np
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, Registry, init_default_scope
from PIL import Image

from ..errors import ConfigError, DataError
from ..utils.text import did_you_mean
from .images import UNDECODABLE, is_cut_short, to_bgr
from .pictures import to_picture

DEFAULT_LOADING = ({'type': 'LoadImageFromFile'},)
FROM_FILE, FROM_FILES, FROM_MEMORY = (
    'LoadImageFromFile',
    'LoadMultiChannelImageFromFiles',
    'LoadImageFromNDArray',
)
REDUCED = 'LoadReducedImageFromFile'  # of a training, see reduced_image.py
# options of LoadImageFromFile that decide the pixels, with their defaults
DECODING = {'color_type': 'color', 'to_float32': False, 'imdecode_backend': 'cv2'}
# values of ``color_type`` and ``imdecode_backend`` that give uint8 (H, W, 3) in BGR for any image
AS_IN_MEMORY = ('color', 'color_ignore_orientation'), ('cv2', 'turbojpeg', 'pillow')
# modules and packages that mmcv needs to decode images; they are no dependencies of mmcv
BACKENDS = {
    'cv2': ('cv2', 'opencv-python'),
    'pillow': ('PIL', 'pillow'),
    'tifffile': ('tifffile', 'tifffile'),
    'turbojpeg': ('turbojpeg', 'PyTurboJPEG'),
}
ImagePath = str | Path | Sequence[str]  # some transforms read one file per channel
AnyImage = ImagePath | np.ndarray | Image.Image


def step_name(step: Any) -> str:
    """Return the class name of a transform, or of the config of a transform."""
    kind = step['type'] if isinstance(step, Mapping) else type(step)
    return kind.__name__ if isinstance(kind, type) else str(kind).split('.')[-1]


def loads_annotations(step: Any) -> bool:
    """Return whether a transform loads annotations, such as ``LoadAnnotations``."""
    name = step_name(step)
    return name.startswith('Load') and ('Annotation' in name or name == 'LoadProposals')


def without_annotations(steps: Sequence[Any]) -> list[Any]:
    """Return the steps of a pipeline that an image without annotations can pass."""
    return [step for step in steps if not loads_annotations(step)]


def loading_steps(steps: Sequence[Any]) -> list[Any]:
    """Return the steps at the start of a pipeline that load the image."""
    loads = takewhile(
        lambda step: step_name(step).startswith('Load') and not loads_annotations(step), steps[1:]
    )
    return [*steps[:1], *loads]


def describe_loading(cfg: Config) -> list[dict[str, Any]]:
    """Return the loading steps of the test pipeline as JSON, without where the files are.

    The options of ``LoadImageFromFile`` that decide the pixels are always listed.
    """
    described = []
    for step in loading_steps(_test_steps(cfg)):
        name = step_name(step)
        options = {key: value for key, value in step.items() if _is_json(value)}
        for key in ('backend_args', 'file_client_args', 'ignore_empty'):
            options.pop(key, None)
        described.append({**(DECODING if name == FROM_FILE else {}), **options, 'type': name})
    return json.loads(json.dumps(described))  # with lists in place of tuples, as in a file


def find_registered(name: str, *registries: Registry) -> Any:
    """Return a class from registries or their parents without an import. None if none has it."""
    for registry in registries:
        node: Registry | None = registry
        while node is not None:
            if name in node.module_dict:
                return node.module_dict[name]
            node = node.parent
    return None


def check_loading(steps: Any) -> None:
    """Check that building loading steps from a file of a stranger runs no code of theirs.

    mmengine imports a ``type`` with dots and the module ``_scope_``, and a transform can build
    others from an option that is a dict.

    Raises:
        ConfigError: A step is not a registered transform, or has an option that is a dict.
    """
    import mmdet.datasets.transforms  # noqa: F401 (registers transforms)
    import mmdet.registry

    for step in steps if isinstance(steps, list) else [steps]:
        kind = step.get('type') if isinstance(step, dict) else step
        known = isinstance(kind, str) and find_registered(kind, mmdet.registry.TRANSFORMS)
        if not isinstance(step, dict) or not known:
            raise ConfigError(f'its reader {str(kind)[:100]!r} is not a registered transform')
        if any(key.startswith('_') or _has_dict(value) for key, value in step.items()):
            raise ConfigError(f'its reader {kind} has an option that only a config can have')


def check_backend(step: Any) -> None:
    """Check that a built transform can decode images with its ``imdecode_backend``.

    Raises:
        ConfigError: mmcv has no such backend, or its package is not installed.
    """
    backend = getattr(step, 'imdecode_backend', None)
    if backend is None:
        return
    has = f"{step_name(step)} has imdecode_backend='{backend}'"
    if backend not in BACKENDS:
        raise ConfigError(
            f'{has}, which mmcv does not have{did_you_mean(backend, BACKENDS)}; choose from '
            f'{", ".join(BACKENDS)}'
        )
    module, package = BACKENDS[backend]
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f'{has}, but the package {package} is not installed; run pip install {package}'
        )
    if backend != 'turbojpeg':
        return
    try:  # mmcv loads the library only in use_backend
        mmcv.imfrombytes(cv2.imencode('.jpg', np.zeros((8, 8, 3)))[1].tobytes(), backend=backend)
    except AttributeError:
        raise ConfigError(
            f"{has}, but nothing has called mmcv.use_backend('turbojpeg'); call it in a module of "
            'custom_imports'
        ) from None


class ImageReader:
    """Read images with the loading steps of a pipeline.

    Args:
        pipeline: Steps as configs or transforms. Only the loading steps are used. An empty pipeline
            reads with ``LoadImageFromFile``.

    Raises:
        ConfigError: A transform is not registered, does not accept its options, or decodes with a
            package that is not installed.
    """

    def __init__(self, pipeline: Sequence[Any] = ()) -> None:
        steps = loading_steps(pipeline) or DEFAULT_LOADING
        try:
            self.steps = [TRANSFORMS.build(s) if isinstance(s, Mapping) else s for s in steps]
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            said = error.args[0] if error.args else error
            raise ConfigError(
                f'{step_name(steps[0])}, with which a pipeline starts, cannot be built: {said}'
            ) from error
        for step in self.steps:
            check_backend(step)

    def load(self, image: ImagePath) -> dict[str, Any]:
        """Return what the loading steps return for an image file, with the image in ``img``.

        Raises:
            DataError: The file cannot be read. The message does not contain its name.
            ConfigError: The steps cannot read a file, or a package is missing.
        """
        first = step_name(self.steps[0])
        path = str(image) if isinstance(image, (str, Path)) else [str(name) for name in image]
        if first == FROM_MEMORY or (first == FROM_FILES and isinstance(path, str)):
            raise ConfigError(
                f'the pipeline starts with {first}, which cannot read one image file; use '
                f'{FROM_FILE} or another transform that reads img_path'
            )
        if any(map(is_cut_short, [path] if isinstance(path, str) else path)):
            raise DataError(f'the image {UNDECODABLE} because the file is truncated')
        results: Any = {'img_path': path, 'img_id': 0}
        try:
            for step in self.steps:
                results = step(results)
        except ImportError as error:
            raise ConfigError(f'{first} needs a package that is not installed: {error}') from None
        except Exception as error:  # a user's transform can raise anything
            known = isinstance(error, (OSError, cv2.error, AssertionError)) and first == FROM_FILE
            reason = '' if known else f' by {first} ({type(error).__name__}: {error})'
            raise DataError(f'the image {UNDECODABLE}{reason}') from error
        if not results:  # ignore_empty=True
            raise DataError(f'the image {UNDECODABLE}')
        if not isinstance(results.get('img'), np.ndarray):
            raise ConfigError(
                f'the pipeline starts with {first}, which sets no img; its first step must load '
                'the image'
            )
        return results

    def __call__(self, image: ImagePath) -> np.ndarray:
        """Return the image as the steps load it, ``(H, W)`` or ``(H, W, C)``."""
        return self.load(image)['img']


class PredictionPipeline:
    """The test pipeline of a config, for images without annotations.

    Args:
        cfg: The config.
        check_size: Called with the height and width of each packed image. It can raise a DataError.

    Raises:
        KeyError, TypeError: A transform is not registered, or has an unknown option.
    """

    def __init__(self, cfg: Config, check_size: Callable[[int, int], None] | None = None) -> None:
        init_default_scope(cfg.get('default_scope') or 'mmdet')
        steps = without_annotations(_test_steps(cfg))
        self.filename, self.loading = cfg.filename, loading_steps(steps)
        self.reader = ImageReader(steps)
        self._check_size = check_size
        self._further = [TRANSFORMS.build(step) for step in steps[len(self.loading) :]]

    def load(self, image: AnyImage) -> dict[str, Any]:
        """Load an image file, or take an array or a PIL image, see :func:`.images.to_bgr`.

        Raises:
            DataError: The image cannot be read or is of another type.
            ConfigError: The pipeline cannot read a file, or it needs other images than the pixels.
        """
        if isinstance(image, (np.ndarray, Image.Image)):
            load = {'type': 'mmdet.LoadImageFromNDArray', 'to_float32': self._to_float32()}
            turn = self.loading[0].get('color_type') != 'color_ignore_orientation'
            return TRANSFORMS.build(load)({'img': to_bgr(image, turn), 'img_id': 0})
        if isinstance(image, (str, Path)) or (
            isinstance(image, (list, tuple)) and all(isinstance(name, str) for name in image)
        ):
            return self.reader.load(image)
        raise DataError(
            f'an image must be a path, an array or a PIL image, got {type(image).__name__}'
        )

    def check_memory(self) -> None:
        """Raise a ConfigError if the pipeline needs other images than BGR pixels of 8 bits."""
        self._to_float32()

    def _to_float32(self) -> bool:
        first = self.loading[0]
        options = {**DECODING, **first}
        colours, backends = AS_IN_MEMORY
        alike = options['color_type'] in colours and options['imdecode_backend'] in backends
        name = step_name(first)
        if len(self.loading) > 1 or not (name == FROM_MEMORY or (name == FROM_FILE and alike)):
            said = f' with color_type {options["color_type"]!r}' if name == FROM_FILE else ''
            raise ConfigError(
                f"config '{self.filename}': the test pipeline loads images by {name}{said}, so it "
                'cannot take frames of a video or a camera, or an array; give image files, or use '
                f"{FROM_FILE} with color_type 'color'"
            )
        return bool(options['to_float32'])

    def pack(self, loaded: Mapping[str, Any]) -> dict[str, Any]:
        """Run the steps after loading.

        Returns:
            ``inputs (C, h, w)``, ``data_samples``, ``picture``, the loaded image for people,
            ``(H, W, 3)``, BGR, uint8, and ``loaded``.

        Raises:
            DataError: The image is too thin to resize, or ``check_size`` refuses its size.
        """
        picture = to_picture(loaded['img'])
        results = {**loaded, 'img': loaded['img'].copy()}  # because a step can work in place
        try:
            for step in self._further:
                results = step(results)
        except cv2.error:
            height, width = picture.shape[:2]
            raise DataError(f'{width}x{height} pixels are too thin to resize') from None
        if self._check_size:
            self._check_size(*results['inputs'].shape[1:])
        return {**results, 'picture': picture, 'loaded': loaded}

    def __call__(self, image: AnyImage) -> dict[str, Any]:
        """Load and pack an image, see :meth:`load` and :meth:`pack`."""
        return self.pack(self.load(image))


def part_of(loaded: Mapping[str, Any], place: tuple[slice, slice]) -> dict[str, Any]:
    """Return a loaded image that is cut to some rows and columns."""
    pixels = loaded['img'][place]
    shape = pixels.shape[:2]
    return {**loaded, 'img': pixels, 'img_shape': shape, 'ori_shape': shape}


def innermost_pipelines(dataset: Any) -> list[list[Any]]:
    """Return the transform lists of a built data set, the innermost first.

    A wrapper that mixes images has a pipeline around the pipeline of the inner data set. For
    concatenated data sets, the lists of the first one are returned.
    """
    pipelines: list[list[Any]] = []
    while dataset is not None:
        pipeline = getattr(dataset, 'pipeline', None)
        if pipeline is not None:
            steps = getattr(pipeline, 'transforms', pipeline)
            pipelines.insert(0, steps if isinstance(steps, list) else [])
        joined = getattr(dataset, 'datasets', [None])
        dataset = getattr(dataset, 'dataset', joined[0])
    return pipelines


def dataset_reader(dataset: Any) -> ImageReader:
    """Return the reader of a built data set."""
    return ImageReader(next(iter(innermost_pipelines(dataset)), ()))


def _test_steps(cfg: Config) -> list[Any]:
    from mmdet.utils import get_test_pipeline_cfg

    return get_test_pipeline_cfg(cfg)


def _has_dict(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_has_dict, value)))


def _is_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_json, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (str, int, float, bool))
