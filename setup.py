"""Package of EfficientViT for OpenMMLab; the tested stack is pinned in ``requirements/``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (here / 'evit_mm' / '__init__.py').read_text())[1]

setup(
    name='evit_mm',
    version=version,
    description='EfficientViT (Microsoft) for OpenMMLab: backbone, neck, detectors on COCO',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['evit_mm', 'evit_mm.*']),
    python_requires='>=3.10',
    # torch.load is weights-only by default from 2.6 on; exports need torch.compiler.is_exporting
    install_requires=[
        'torch>=2.7',
        'torchvision',
        'mmengine>=0.10.7',
        'mmcv>=2.0.0rc4,<2.2.0',
        'numpy>=2',
        'rich',
        'opencv-python',
        'huggingface_hub',
        'safetensors',
        'filelock',
        'matplotlib',
    ],
    extras_require={
        'det': ['mmdet>=3.3.0', 'pycocotools'],
        'fast-eval': ['faster-coco-eval>=1.8.0'],
        'export': [
            'onnx>=1.20',
            'onnxscript>=0.5',
            'onnxruntime>=1.20',
            'openvino>=2025.0',
            'nncf>=2.19',
        ],
        'cls': ['mmpretrain>=1.2.0', 'timm>=1.0.31'],
        'report': ['altair>=5.5', 'vl-convert-python>=1.7', 'jinja2'],
        'demo': ['gradio>=6'],
        'track': ['tensorboard'],
    },
)
