"""Package of EfficientViT for OpenMMLab; ``requirements/constraints.txt`` pins what was tested."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
version = re.search(r"__version__ = '(.+)'", (here / 'evit_mm' / '__init__.py').read_text())[1]
# what a wheel carries beside the code, under evit_mm/.mim, where OpenMMLab's tools look
CARRIED = (
    'model-index.yml',
    'configs/**/*.py',
    'configs/*.md',
    'configs/*.yml',
    'tools/*.py',
    'tools/*.sh',
    'requirements/constraints.txt',
)


class BuildWithMim(build_py):
    """Copy configs and tools into the build, not into the checkout, which has them already."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'evit_mm' / '.mim'
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for pattern in CARRIED:
            for file in filter(Path.is_file, here.glob(pattern)):
                copy = target / file.relative_to(here)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, copy)


# Nothing but 'all' names mmengine, mmcv or torchvision: an environment that has them may have them
# under another name (compiled mmcv, mmcv-lite, the OneDL fork), which pip would then overwrite, or
# for an older torch, which a newer torchvision would replace.
extras = {
    'det': ['mmdet>=3.3.0,<3.4', 'pycocotools'],
    'cls': ['mmpretrain>=1.2.0', 'timm>=1.0.31'],
    'export': [
        'onnx>=1.20',
        'onnxscript>=0.5',
        'onnxruntime>=1.20',
        'openvino>=2025.0',
        'nncf>=2.19',
    ],
    'report': ['jinja2'],
    'demo': ['gradio>=6'],
    'track': ['tensorboard'],  # MLflow and Weights & Biases are asked for by name
    'docs': ['Sphinx>=8', 'myst-parser>=4', 'furo', 'sphinx-autoapi>=3.6'],
    'dev': [
        'pytest',
        'pytest-cov',
        'hypothesis',
        'sybil',
        'ruff',
        'mypy',
        'import-linter',
        'pre-commit',
        'playwright',
        'build',
        'twine',
        'tox',
    ],
}
# the libraries under all of it, for an environment that does not have them
stack = [
    'torchvision>=0.15',
    'mmengine>=0.10.7',
    'mmcv-lite>=2.0.0,<2.2.0',
    # configs with mmdet:: bases import pkg_resources, which setuptools 82 no longer has
    'setuptools<82',
    # mmcv-lite and mmengine ask for opencv-python, which does not load without libGL and libxcb.
    # pip writes this one over it: of two packages of equal depth it installs the one whose name
    # sorts last first. opencv-python-headless would come before opencv-python.
    'opencv-contrib-python-headless',
]
extras['all'] = sorted({*stack, *(package for packages in extras.values() for package in packages)})

setup(
    name='evit_mm',
    version=version,
    description='EfficientViT (Microsoft) for OpenMMLab: backbone, neck, detectors on COCO',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='the evit_mm contributors',
    license='Apache-2.0',
    license_files=['LICENSE', 'NOTICE'],
    project_urls={'Paper': 'https://arxiv.org/abs/2305.07027'},
    keywords=['object detection', 'EfficientViT', 'OpenMMLab', 'mmdet', 'backbone', 'RetinaNet'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    packages=find_packages(include=['evit_mm', 'evit_mm.*']),
    package_data={
        'evit_mm': ['py.typed', *(f'**/*.{k}' for k in ('html', 'j2', 'css', 'js', 'json', 'yml'))]
    },
    entry_points={'console_scripts': ['evit_mm = evit_mm.__main__:main']},
    cmdclass={'build_py': BuildWithMim},
    python_requires='>=3.10',
    # All light but torch, so that nothing changes in an environment that has mmdet; where mmengine,
    # mmcv or torchvision is missing, importing evit_mm says which one and how to install it.
    install_requires=[
        'torch>=2.0',
        'numpy>=1.23',
        'rich',
        'huggingface_hub',
        'safetensors',
        'filelock',
        'pooch[progress]',
        'urllib3>=2',  # notices that a download has ended too early
        'matplotlib',
        # tests show that its figures are pycocotools' to the bit; wheels for Python 3.10 and later
        'hotcoco>=1.3,<2',
    ],
    extras_require=extras,
)
