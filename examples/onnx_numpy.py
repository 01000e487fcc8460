"""Detect objects with an exported file; needs only ONNX Runtime and numpy.

python examples/onnx_numpy.py MODEL.onnx IMAGE.npy, with an RGB image (H, W, 3), uint8.
"""

import json
import sys

import numpy as np
import onnxruntime


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize with linear interpolation between pixel centres, as in OpenCV."""
    for axis, new in enumerate((height, width)):
        old = image.shape[axis]
        place = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        share = np.expand_dims(place % 1, (1 - axis, 2))
        low, high = image.take(np.int64(place), axis), image.take(np.int64(np.ceil(place)), axis)
        image = low * (1 - share) + high * share
    return image.round()


if len(sys.argv) != 3:
    sys.exit('usage: python examples/onnx_numpy.py MODEL.onnx IMAGE.npy')
model, picture = sys.argv[1:]
try:
    session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])
    meta = json.loads(session.get_modelmeta().custom_metadata_map['evit_mm'])
except Exception as error:  # the errors of onnxruntime have no common type
    sys.exit(f"error: '{model}' is not an ONNX file of tools/export.py ({error})")
if 'labels' not in meta['outputs']:
    sys.exit(f"error: '{model}' contains no NMS; export it without --no-nms")
first, *further = meta.get('reader') or [{}]  # files of older versions do not name it
supported = (
    first.get('type', 'LoadImageFromFile') == 'LoadImageFromFile'
    and first.get('color_type', 'color') in ('color', 'color_ignore_orientation')
    and first.get('imdecode_backend') != 'tifffile'  # the other backends give 8 bits
)
if further or not supported:
    sys.exit(
        f"error: '{model}' needs images as {meta['reader']} reads them, but this example only "
        'takes 8 bits and three channels; load the images in your own program'
    )
try:
    image = np.load(picture)
except (OSError, ValueError) as error:
    sys.exit(f"error: '{picture}' is not a .npy file ({error}); write it with numpy.save")
if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    found = f'{image.dtype} of shape {image.shape}'
    sys.exit(f"error: '{picture}' contains {found}, not an RGB image (H, W, 3) of uint8")
old, new = np.array(image.shape[:2]), np.array(meta['scale'][::-1])  # height, width
if meta['keep_ratio']:
    new = np.int64(old * min(max(new) / max(old), min(new) / min(old)) + 0.5)
pixels = resize(image, *new)[..., :: 1 if meta['channels'] == 'RGB' else -1]
pixels = (pixels - meta['mean']) / meta['std']
down, right = -new % meta['pad_size_divisor']
pixels = np.pad(pixels, ((0, down), (0, right), (0, 0)), constant_values=meta['pad_value'])
inputs = {'image': pixels.transpose(2, 0, 1)[None], 'size': new[None]}
inputs = {name: np.ascontiguousarray(x, np.float32) for name, x in inputs.items()}
boxes, scores, labels = (x[0] for x in session.run(None, inputs))
for box, score, label in zip(boxes * np.tile((old / new)[::-1], 2), scores, labels, strict=True):
    if score > 0:
        print(meta['classes'][label], f'{score:.3f}', *(f'{x:.1f}' for x in box))
