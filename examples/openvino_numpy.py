"""Detect objects with OpenVINO, NumPy and OpenCV, without PyTorch.

pip install openvino opencv-python-headless
python examples/openvino_numpy.py MODEL.xml IMAGE
"""

import json
import sys

import cv2
import numpy as np
import openvino

# the example reads images in this way; for a file with another reader, change cv2.imread below
READER = {'type': 'LoadImageFromFile', 'color_type': 'color', 'imdecode_backend': 'cv2'}


def prepare(image, meta):
    """Return the input of the model for a BGR image, and the new (height, width) of the image."""
    old, new = np.array(image.shape[:2]), np.array(meta['scale'][::-1])
    if meta['keep_ratio']:
        new = np.int64(old * min(max(new) / max(old), min(new) / min(old)) + 0.5).clip(1)
    resized = cv2.resize(image, new[::-1].tolist())
    size = new
    if meta['pad_to']:  # this padding counts as a part of the image
        size = np.array([max(new)] * 2 if meta['pad_to'] == 'square' else meta['pad_to'][::-1])
    image = np.full((*size, 3), meta['pad_pixel'], np.uint8)
    image[: new[0], : new[1]] = resized
    image = image[..., ::-1] if meta['channels'] == 'RGB' else image
    padded = size + -size % meta['pad_size_divisor']
    pixels = np.full((*padded, 3), meta['pad_value'], np.float32)
    pixels[: size[0], : size[1]] = (image - np.array(meta['mean'])) / meta['std']
    inputs = {'image': pixels.transpose(2, 0, 1)[None].copy(), 'size': np.float32(size)[None]}
    return inputs, new


def main(file, picture):
    """Print the class, the score and the box (x1, y1, x2, y2) of each detection."""
    try:
        model = openvino.Core().read_model(file)
        text = model.get_rt_info('evit_mm').astype(str) if model.has_rt_info('evit_mm') else '{}'
        meta = json.loads(text)
    except RuntimeError as error:
        sys.exit(f"error: '{file}' cannot be opened: {str(error).strip().splitlines()[-1]}")
    if 'labels' not in meta.get('outputs', ()):
        sys.exit(f"error: '{file}' is not a detector with NMS that tools/export.py wrote")
    if len(meta['reader']) != 1 or not READER.items() <= meta['reader'][0].items():
        sys.exit(f"error: '{file}' needs images from {meta['reader']}, which this example lacks")
    image = cv2.imread(picture)
    if image is None:
        sys.exit(f"error: '{picture}' does not exist or is not an image")
    inputs, new = prepare(image, meta)
    size = [*inputs['image'].shape[:1:-1]]
    if meta.get('static_size') not in (None, size):
        sys.exit(f"error: '{file}' accepts only images of {meta['static_size']} pixels, got {size}")
    # by default, OpenVINO computes in bfloat16 if the processor supports it
    run = openvino.compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    outputs = run(inputs)
    boxes, scores, labels = (outputs[name][0] for name in ('boxes', 'scores', 'labels'))
    boxes /= np.tile(new / image.shape[:2], 2)[::-1]
    for box, score, label in zip(boxes, scores, labels, strict=True):
        if score > 0:
            print(meta['classes'][label], f'{score:.3f}', *(f'{x:.1f}' for x in box))


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(f'usage: python {sys.argv[0]} MODEL.xml IMAGE')
    main(*sys.argv[1:])
