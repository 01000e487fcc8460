"""Package metadata and dependencies. ``requirements/constraints.txt`` pins the tested versions."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
version = re.search(r"__version__ = '(.+)'", (here / 'evit_mm' / '__init__.py').read_text())[1]
# files that the wheel contains under evit_mm/.mim, where OpenMMLab's tools look for them
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
    """Copy configs and tools into the build folder."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'evit_mm' / '.mim'
        shutil.rmtree(target, ignore_errors=True)  # from an earlier build
        for pattern in CARRIED:
            for file in filter(Path.is_file, here.glob(pattern)):
                copy = target / file.relative_to(here)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, copy)


# Only 'all' requires mmengine, mmcv and torchvision. An existing environment may have them under
# another name (compiled mmcv, mmcv-lite, the OneDL fork), and pip would overwrite them. A newer
# torchvision would also replace an older torch.
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
    'demo': ['gradio>=6', 'supervision>=0.31'],
    'tiles': ['sahi>=0.12'],  # it requires opencv-python, which not every environment has
    'track': ['tensorboard'],  # install MLflow or Weights & Biases separately
    'docs': ['Sphinx>=8', 'myst-parser>=4', 'furo', 'sphinx-autoapi>=3.6'],
    'dev': [
        'pytest',
        'pytest-cov',
        'pytest-xdist',
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
# base libraries for a new environment
stack = [
    'torchvision>=0.15',
    'mmengine>=0.10.7',
    'mmcv-lite>=2.0.0,<2.2.0',
    # configs with mmdet:: bases import pkg_resources, which setuptools 82 removed
    'setuptools<82',
    # mmcv-lite and mmengine require opencv-python, which needs libGL and libxcb. The headless build
    # below overwrites its files, because pip installs packages of equal depth in reverse
    # alphabetical order. opencv-python-headless would be overwritten by opencv-python.
    'opencv-contrib-python-headless',
]
extras['all'] = sorted({*stack, *(package for packages in extras.values() for package in packages)})
extras['executorch'] = ['executorch>=1.5']  # not in 'all': 250 MB, most of it for other devices

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
    # Except for torch, these packages are small and do not change an environment with mmdet. If
    # mmengine, mmcv or torchvision is missing, importing evit_mm shows how to install it.
    install_requires=[
        'torch>=2.0',
        'numpy>=1.23',
        'rich',
        'huggingface_hub',
        'safetensors',
        'filelock',
        'pooch[progress]',
        'urllib3>=2',  # detects truncated downloads
        'matplotlib',
        # bit-identical to pycocotools (tested); has wheels for Python 3.10 and later
        'hotcoco>=1.3,<2',
    ],
    extras_require=extras,
)
