"""``config.json`` of a published detector: what prediction needs, as data.

mmengine and mmcv turn strings of a config into code. They import a ``type`` with dots, the modules
of ``custom_imports`` and those of ``_scope_``. They evaluate the ``type`` of ``nms`` as Python, and
they read a file that ``metainfo`` names. A published config can come from a stranger. Therefore it
is JSON with a fixed set of fields, and each ``type`` in it is one of the names below. Other
strings are single words.

The classes of these names take numbers, strings and further parts. They open no file and no
connection. Others do: ``TIMMBackbone`` of mmpretrain and ``BertModel`` download files, and
``KnowledgeDistillationSingleStageDetector`` runs a config. A folder can still waste memory or time,
for example with a very large image size.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmcv.ops
from mmengine.config import Config

from ...data.pipeline import find_registered, without_annotations
from ...errors import ConfigError
from ...utils.text import did_you_mean
from ..export.files import preprocessor_config

VERSION = 1
FIELDS = ('format_version', 'evit_mm', 'model', 'test_pipeline', 'classes', 'palette')
MAX_DEPTH = 32
# of other strings; some parts use one as the type of a further part, such as padding_mode
WORD = re.compile(r'[\w-]{1,100}', re.ASCII)
TUPLE = '__tuple__'  # {"__tuple__": [...]} is a tuple, which JSON does not have


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETECTORS = _names('ATSS CascadeRCNN DINO FCOS FasterRCNN GFL MaskRCNN RTMDet RetinaNet YOLOX')
PARTS = _names("""
    DetDataPreprocessor
    CSPDarknet CSPNeXt EfficientViT MobileNetV2 ResNet SPOSNet TIMMMobileNet TIMMNet
    CSPNeXtPAFPN ChannelMapper EfficientViTFPN FPN YOLOXPAFPN
    ATSSHead DINOHead FCOSHead GFLHead RPNHead RTMDetHead RTMDetSepBNHead RetinaHead
    SyncedRetinaHead YOLOXHead
    CascadeRoIHead FCNMaskHead Shared2FCBBoxHead SingleRoIExtractor StandardRoIHead
    AnchorGenerator MlvlPointGenerator
    DeltaXYWHBBoxCoder DistancePointBBoxCoder
    CrossEntropyLoss DistributionFocalLoss FocalLoss GIoULoss IoULoss L1Loss QualityFocalLoss
    SmoothL1Loss
    BN GN SyncBN
    GELU HSwish LeakyReLU ReLU ReLU6 SiLU Sigmoid Swish
    Conv2d Linear deconv
""")
STEPS = _names("""
    LoadImageFromFile LoadMultiChannelImageFromFiles
    FixScaleResize Pad Resize
    PackDetInputs
""")
# of mmcv.ops, by their key in a config
OPERATORS = {'nms': _names('nms soft_nms'), 'roi_layer': _names('RoIAlign')}
# without a use in prediction; some read files, and some name parts that only training needs
NULL = ('backend_args', 'batch_augments', 'file_client_args', 'init_cfg', 'pretrained', 'train_cfg')


def to_json(cfg: Config, metainfo: Mapping[str, Any], version: str) -> str:
    """Return the text of ``config.json`` for a detector.

    Args:
        cfg: Config of the detector.
        metainfo: Class names, and optionally their colours, see
            :func:`~evit_mm.runner.build.load_detector`.
        version: Version of this package.

    Raises:
        ConfigError: The detector has a part or a value that a published config cannot have.
    """
    from mmdet.utils import get_test_pipeline_cfg

    source = f"config '{cfg.filename}' cannot be published"
    if cfg.get('default_scope', 'mmdet') != 'mmdet':
        raise ConfigError(
            f"{source}: default_scope is '{cfg.default_scope}'; only detectors of mmdet can be "
            'published'
        )
    steps = without_annotations(get_test_pipeline_cfg(cfg))
    model = cfg.model.copy()
    if preprocessor := preprocessor_config(cfg):
        model['data_preprocessor'] = preprocessor
    classes = list(metainfo['classes'])
    palette = metainfo.get('palette')
    content = {
        'format_version': VERSION,
        'evit_mm': version,
        'model': _encode(model, 'model', source),
        'test_pipeline': _encode(list(steps), 'test_pipeline', source),
        'classes': classes,
        'palette': _encode_palette(palette, len(classes)),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    from_json(text, source)
    return text


def from_json(text: str | bytes, source: str, filename: Path | None = None) -> Config:
    """Return the config of a detector from the text of ``config.json``.

    The config has ``model`` and a ``test_dataloader`` with the pipeline and the class names.

    Args:
        text: Content of the file, from anyone.
        source: Beginning of the error messages.
        filename: ``filename`` of the config.

    Raises:
        ConfigError: The text is not such a config, or it contains anything that is not on the lists
            of this module.
    """
    content = _parse(text, source)
    model = _decode(content['model'], 'model', source, PARTS | DETECTORS)
    steps = _decode(content['test_pipeline'], 'test_pipeline', source, STEPS)
    kind = model.get('type') if isinstance(model, dict) else None
    if kind not in DETECTORS:
        raise _refusal(source, 'model.type', kind, DETECTORS)
    names = [step.get('type', '') if isinstance(step, dict) else '' for step in _listed(steps)]
    if len(names) < 2 or not names[0].startswith('Load') or names[-1] != 'PackDetInputs':
        raise ConfigError(
            f'{source}: test_pipeline must be a list of steps that starts with LoadImageFromFile '
            'and ends with PackDetInputs'
        )
    classes = _check_classes(content['classes'], source)
    for where, number in _numbers_of_classes(model, 'model'):
        if number != len(classes):
            raise ConfigError(
                f'{source}: {where} is {_short(number)}, but classes has {len(classes)} names; '
                'they must agree'
            )
    metainfo: dict[str, Any] = {'classes': classes}
    if content['palette'] is not None:
        metainfo['palette'] = _check_palette(content['palette'], len(classes), source)
    dataset = {'type': 'CocoDataset', 'metainfo': metainfo, 'pipeline': steps}
    found = {'default_scope': 'mmdet', 'model': model, 'test_dataloader': {'dataset': dataset}}
    return Config(found, filename=filename and str(filename))


def _parse(text: str | bytes, source: str) -> dict[str, Any]:
    """Parse the JSON, and check the names of the fields and the version."""

    def refuse(word: str) -> Any:
        raise ValueError(f'{word} is not valid JSON')

    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        content = json.loads(decoded, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{source}: it is not valid JSON ({error})') from None
    if not isinstance(content, dict) or 'format_version' not in content:
        raise ConfigError(
            f"{source}: it has no 'format_version', so tools/publish.py did not write it; give a "
            'folder that this tool has written'
        )
    if content['format_version'] != VERSION:
        raise ConfigError(
            f'{source}: format_version is {_short(content["format_version"])}, and this version of '
            f'evit_mm reads {VERSION}; update evit_mm'
        )
    for key in content:
        if key not in FIELDS:
            hint = did_you_mean(key[:100], FIELDS)
            raise ConfigError(
                f'{source}: {_short(key)} is not a field of a published config{hint}; remove it'
            )
    missing = [key for key in FIELDS if key not in content]
    if missing:
        raise ConfigError(f"{source}: the field '{missing[0]}' is missing")
    return content


def _encode(value: Any, where: str, source: str) -> Any:
    """Convert a part of a config to JSON; what prediction does not use becomes null."""
    if isinstance(value, Mapping):
        found: dict[Any, Any] = {}
        for key, item in value.items():  # a ConfigDict builds lazily imported classes here
            below = f'{where}.{key}'
            if (key, item) == ('_scope_', 'mmdet'):  # of a base 'mmdet::...'; it is the default
                continue
            if key in NULL:
                found[key] = None
            elif key == 'type':
                found[key] = _encode_type(item, below, source)
            else:
                found[key] = _encode(item, below, source)
        return found
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f'{where}.{i}', source) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {TUPLE: items}
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f'{source}: {where} is {value}, which JSON does not have')
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(
        f'{source}: {where} is of the type {type(value).__name__}; config.json can have numbers, '
        'strings, lists, tuples and dicts'
    )


def _encode_type(kind: Any, where: str, source: str) -> str:
    """Return the plain name of a class. A config names it with or without a scope, or gives it."""
    if isinstance(kind, str):
        return kind.removeprefix('mmdet.')
    name = getattr(kind, '__name__', str(kind))
    if _registered(name) is not kind and getattr(mmcv.ops, name, None) is not kind:
        raise ConfigError(f'{source}: {where} is {kind!r}, which has no registered name')
    return name


def _encode_palette(palette: Any, number: int) -> list[list[int]] | None:
    """Return one colour per class, or None if there are fewer, or colours of another form."""
    try:
        colours = [[int(x) for x in colour] for colour in palette[:number]]
    except (TypeError, ValueError):
        return None
    return colours if len(colours) == number and all(len(c) == 3 for c in colours) else None


def _decode(
    value: Any, where: str, source: str, kinds: frozenset[str], depth: int = MAX_DEPTH
) -> Any:
    """Check a part of a config from JSON, and convert it to dicts, lists and tuples."""
    if not depth:
        raise ConfigError(f'{source}: {where[:100]}... has too many levels')
    if isinstance(value, list):
        return [
            _decode(item, f'{where}.{i}', source, kinds, depth - 1) for i, item in enumerate(value)
        ]
    if isinstance(value, str) and not WORD.fullmatch(value):
        raise ConfigError(
            f'{source}: {where} is {_short(value)}; a string in a published config can have only '
            'letters, digits, _ and -'
        )
    if not isinstance(value, dict):
        return value
    if list(value) == [TUPLE] and isinstance(value[TUPLE], list):
        return tuple(_decode(value[TUPLE], where, source, kinds, depth - 1))
    for key, item in value.items():
        below = f'{where}.{key[:100]}'
        if not key.isidentifier() or key.startswith('_'):
            raise ConfigError(f'{source}: {below!r} is not a field of a published config')
        if key in NULL and item is not None:
            raise ConfigError(
                f'{source}: {below} is not allowed in a published config; set it to null'
            )
        if key == 'type':
            _check_type(item, below, source, kinds)
    return {
        key: _decode(item, f'{where}.{key}', source, OPERATORS.get(key, kinds), depth - 1)
        for key, item in value.items()
    }


def _check_type(kind: Any, where: str, source: str, kinds: frozenset[str]) -> None:
    """Check that a type is on the list of its place, and that no import is needed to find it."""
    if not isinstance(kind, str) or kind not in kinds:
        raise _refusal(source, where, kind, kinds)
    if kinds not in OPERATORS.values() and _registered(kind) is None:
        raise ConfigError(f"{source}: {where} is '{kind}', which the installed mmdet does not have")


def _refusal(source: str, where: str, kind: Any, kinds: frozenset[str]) -> ConfigError:
    return ConfigError(
        f'{source}: {where} is {_short(kind)}, which is not on the list of the parts that a '
        f'published detector can have; use one of {", ".join(sorted(kinds))}'
    )


def _registered(name: str) -> Any:
    """Return a class of mmdet, of the libraries below it or of this package, or None."""
    import mmdet.datasets.transforms
    import mmdet.models  # noqa: F401 (both register classes)
    from mmdet.registry import MODELS, TASK_UTILS, TRANSFORMS

    from ...models import heads  # noqa: F401 (registers classes)

    return find_registered(name, MODELS, TASK_UTILS, TRANSFORMS)


def _check_classes(classes: Any, source: str) -> tuple[str, ...]:
    names = _listed(classes)
    usable = all(isinstance(name, str) and name and name.isprintable() for name in names)
    if not names or not usable or len(set(names)) < len(names):
        raise ConfigError(f'{source}: classes must be a list of different names')
    return tuple(names)


def _check_palette(palette: Any, number: int, source: str) -> list[tuple[int, ...]]:
    colours = [_listed(colour) for colour in _listed(palette)]
    values = [value for colour in colours for value in colour]
    if (
        [len(colour) for colour in colours] != [3] * number
        or not all(type(value) is int for value in values)
        or not all(0 <= value <= 255 for value in values)
    ):
        raise ConfigError(f'{source}: palette must be null, or a list of one [R, G, B] per class')
    return [tuple(colour) for colour in colours]


def _numbers_of_classes(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each ``num_classes``."""
    items: Any = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in value.items() if isinstance(value, dict) else items:
        if key == 'num_classes':
            yield f'{where}.{key}', item
        yield from _numbers_of_classes(item, f'{where}.{key}')


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _short(value: Any) -> str:
    """Return a value of a stranger for a message, in one line without control characters."""
    return repr(value)[:100]
