"""Export detectors to all formats and measure the AP: python tools/dev/formats_ap.py RUN [RUN ...].

RUN is the work dir of a training. Each file is compared with PyTorch on the test images, then
evaluated as ``tools/test.py`` does. The program writes ``formats_ap.md`` and ``formats_ap.json`` to
the output folder after each file. Started again, it skips the files that the JSON contains.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from evit_mm.compare.benchmark.machine import describe
from evit_mm.deploy.export import export
from evit_mm.deploy.export.evaluation import evaluate
from evit_mm.deploy.export.files import BFLOAT16, FLOAT16, FLOAT32, INT8
from evit_mm.deploy.export.formats import FORMATS
from evit_mm.errors import EvitError
from evit_mm.runner.config import load_config
from evit_mm.runner.work_dir import config_and_checkpoint
from evit_mm.utils.cli import run_tool
from evit_mm.utils.files import read_json_dict, write_atomically, write_json
from evit_mm.utils.provenance import versions
from evit_mm.utils.text import markdown_table

PACKAGES = ('onnx', 'nncf', 'executorch')
METRICS = {'coco/bbox_mAP': 'AP', 'coco/segm_mAP': 'mask AP'}
PYTORCH = 'PyTorch'
FORMS = (
    (PYTORCH, FLOAT32),
    ('onnx', FLOAT32),
    ('openvino', FLOAT32),
    ('torch', FLOAT32),
    ('executorch', FLOAT32),
    ('onnx', INT8),
    ('openvino', INT8),
    ('openvino', BFLOAT16),
    ('onnx', FLOAT16),
)
COLUMNS = ['detector', 'data', 'format', 'precision', 'MB', 'AP', 'difference', 'agreement']


def metrics(config: Path, weights: Path) -> dict[str, float]:
    """Return the APs of a checkpoint or an exported file."""
    with tempfile.TemporaryDirectory() as folder:
        found = evaluate(config, weights, work_dir=folder)
    return {name: found[key] for key, name in METRICS.items() if key in found}


def measure(config: Path, checkpoint: Path, name: str, precision: str) -> dict[str, Any]:
    """Export, compare and evaluate one file."""
    if name == PYTORCH:
        return metrics(config, checkpoint)
    form = FORMATS[name]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'model').with_suffix(form.suffixes[-1])
        try:
            # one image size, because a graph for any size takes minutes to write
            exported = export(config, checkpoint, out, name, precision=precision, dynamic=False)
        except EvitError as error:
            return {'error': str(error)}
        size = sum(out.with_suffix(suffix).stat().st_size for suffix in form.suffixes)
        agreement = {'MB': round(size / 1e6, 2), 'agreement': str(exported.agreement)}
        return {**metrics(config, out), **agreement}


def markdown(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """Return the page."""
    table = []
    for row in rows:
        plain = next(x for x in rows if x['detector'] == row['detector'])
        names = [name for name in METRICS.values() if name in row]
        cells = {
            **row,
            'MB': row.get('MB', '-'),
            'AP': ', '.join(f'{row[name]:.3f}' for name in names) or 'not exported',
            'difference': ', '.join(f'{row[name] - plain[name]:+.3f}' for name in names) or '-',
            'agreement': row.get('agreement') or row.get('error', '-'),
        }
        table.append([str(cells[column]) for column in COLUMNS])
    facts = '; '.join(f'{key}: {value}' for key, value in about.items())
    notes = (
        'AP is that of boxes, and after a comma that of masks. The difference is to PyTorch. The '
        'agreement is that of the detections on at most 20 test images. int8 is calibrated on at '
        'most 100 training images. The files accept one image size (`--static`).\n\n'
        f'Measured with {facts}.'
    )
    lines = ['# AP of the exported files', '', *markdown_table(COLUMNS, table), '', notes]
    return '\n'.join(lines) + '\n'


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Measure the AP of a detector in all formats')
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='work dir of a training')
    parser.add_argument(
        '-o', '--out', type=Path, default='docs/performance', help='default: docs/performance'
    )
    return parser.parse_args()


def main() -> None:
    """Measure what the JSON does not contain, and write the page after each file."""
    args = parse_args()
    file = args.out / 'formats_ap.json'
    command = shlex.join(['python', 'tools/dev/formats_ap.py', *map(str, args.runs)])
    about = {**describe(torch.get_num_threads()), **versions(PACKAGES), 'command': command}
    found = read_json_dict(file) if file.exists() else {'rows': [], 'about': about}
    rows, about = found['rows'], {**about, 'commit': found['about']['commit']}
    if any(found['about'].get(key) != about[key] for key in ('cpu', *PACKAGES, 'torch')):
        raise EvitError(f"'{file}' was measured elsewhere or with other versions; remove it first")
    for name, precision in FORMS:  # all detectors in one format, then in the next
        for run in args.runs:
            config, checkpoint = config_and_checkpoint(run)
            data = Path(load_config(config).test_dataloader.dataset.data_root).name
            key = {'detector': run.name, 'data': data, 'format': name, 'precision': precision}
            if any(key.items() <= row.items() for row in rows):
                continue
            rows.append({**key, **measure(config, checkpoint, name, precision)})
            print(*rows[-1].values(), sep=', ', file=sys.stderr)
            rows.sort(key=lambda row: row['detector'])
            write_json(file, {'about': about, 'rows': rows}, indent=1)
            write_atomically(file.with_suffix('.md'), markdown(rows, about).encode())


if __name__ == '__main__':
    run_tool(main)
