"""Write the GPU page from the JSON file of ``python -m tests.gpu``."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evit_mm.compare.benchmark.timing import Row, median_and_quartiles, ratio_of
from evit_mm.compare.published_results import label_of

from .worker import TIME_IS_UP

MIB = 2**20
NOT_RUN = """# On a GPU

**Not run on a GPU.** `make gpu` runs the GPU tests, trainings and benchmarks in about eight minutes
and writes this page.
"""
# timm's published table: RTX Pro 6000 Max-Q, AMP, torch 2.9.1, 224 px, batch 2048; images/s
PUBLISHED = {
    'EfficientViT-M0': (87_661, 159_362),
    'EfficientViT-M4': (47_081, 89_707),
    'EfficientViT-M5': (31_163, 64_718),
    'MobileNetV2': (15_380, 26_549),
}
# columns of the tables for a large batch and for one image
SUMMARY = (
    'timm, eager',
    'timm, channels last',
    'timm, compiled',
    'ours, eager',
    'ours, contiguous, eager',
    'fused, eager',
    'fused, float16 weights',
    'fused, compiled',
)
LATENCIES = (
    'timm, eager',
    'timm, compiled',
    'timm, CUDA graph',
    'ours, eager',
    'fused, eager',
    'fused, compiled',
    'fused, CUDA graph',
    'fused, compiled, CUDA graph',
)


# facts that the commands and the headings already show
SETTINGS = ('command', 'minutes', 'parts', 'side', 'batch')


def markdown(content: Mapping[str, Any]) -> str:
    """Return the page."""
    if not content.get('about'):
        return NOT_RUN
    about = content['about']
    lines = [f'# On a GPU: {about["device"]}', '']
    if about.get('tiny'):
        lines += ['**This is a rehearsal at tiny sizes. Do not use its figures.**', '']
    lines += [
        f'Measured on {about["device"]} on {about["date"]} with these commands:',
        '',
        '```bash',
        about['command'],
        '```',
        '',
        'The tables show the median and the quartiles of the calls. The JSON file beside this page '
        'contains every timed call. "Times faster" is the median over the rounds. Its baseline is '
        'the first form of the same network, unless the section states another one.',
        '',
    ]
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in content['rows']:
        rows.setdefault(row['table'], []).append(row)
    lines += _limits(rows.get('limits', []))
    if rows.get('batch') or rows.get('one'):
        lines += [
            '## Classifiers',
            '',
            f'The images have {about["side"]} px. "-" means that the form does not exist for the '
            'network or was not measured. cuDNN selects its algorithms by benchmarking. The '
            'compiled forms use `torch.compile` with its default options.',
            '',
        ]
    for table, names in (('batch', SUMMARY), ('one', LATENCIES)):
        lines += _classifiers(rows.get(table, []), table, names, about)
    lines += _section(
        'RetinaNet-M4: prediction',
        'From image tensors on the CPU to boxes. Rows with "AMP" use float16, all other rows '
        'float32 without TF32. The weights are random. The scores are scaled so that about 1,000 '
        'pass the threshold. The baseline is the same stage in mmdet, in float32.',
        rows.get('detection', []),
    )
    lines += _section(
        'Training steps',
        'Forward pass, loss and backward pass of a detector, with our backbone and with '
        "timm's backbone. The baseline is timm's backbone in the same precision.",
        rows.get('steps', []),
    )
    lines += _trainings(content['trainings'])
    lines += _checks(content['checks'])
    lines += ['## Environment', '']
    lines += _table(('', ''), [(key, x) for key, x in about.items() if key not in SETTINGS])
    lines += ['## Parts of the command', '']
    lines += _table(('part', 'seconds', 'outcome'), [
        (name, f'{part["seconds"]:.0f}', part['outcome']) for name, part in content['parts'].items()
    ])  # fmt: skip
    return '\n'.join(lines).rstrip() + '\n'


def _limits(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for row in rows:
        if not row['seconds']:
            found.append((row['name'], f'not run: {row["note"]}'))
            continue
        rate = row['work'] / statistics.median(row['seconds'])
        unit = 'GB/s read and written' if row['name'] == 'copy' else 'TFLOP/s'
        scale = 1e9 if row['name'] == 'copy' else 1e12
        found.append((row['name'], f'{rate / scale:,.0f} {unit}'))
    return ['## Limits of the GPU', '', *_table(('', 'median'), found)] if found else []


def _classifiers(
    rows: Sequence[Mapping[str, Any]],
    table: str,
    names: Sequence[str],
    about: Mapping[str, Any],
) -> list[str]:
    if not rows:
        return []
    batch = about['batch']
    published = table == 'batch'
    if published:
        title, text = f'Batch {batch}, AMP', 'Images per second (median).'
    else:
        title, text = 'One image, half precision', 'Milliseconds per call (median).'
    rows, missing = _split(rows)
    by_name = {(row['group'], row['name']): row for row in rows}
    groups = sorted({row['group'] for row in rows}, key=_order)
    rows = sorted(rows, key=lambda row: groups.index(row['group']))
    columns = [name for name in names if any((group, name) in by_name for group in groups)]
    heads = ['network', *columns]
    if published:
        heads += ['timm, eager, published', 'timm, compiled, published']
    found = []
    for group in groups:
        cells = [group]
        for name in columns:
            seconds = by_name.get((group, name), {}).get('seconds')
            middle = statistics.median(seconds) if seconds else None
            if middle is None:
                cells.append('-')
            else:
                cells.append(f'{batch / middle:,.0f}' if published else f'{middle * 1e3:.3f}')
        if published:
            cells += [f'{x:,}' for x in PUBLISHED.get(group, ())] or ['-', '-']
        found.append(cells)
    if published:
        text += (
            " The published columns are timm's own figures for an RTX Pro 6000 Max-Q with AMP, "
            'torch 2.9.1 and batch 2048.'
        )
    lines = [f'### {title}', '', text, '', *(_table(heads, found) if found else []), *missing]
    return lines + (_details(rows) if rows else [])


def _section(title: str, text: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    rows, missing = _split(rows)
    return [f'## {title}', '', text, '', *(_rows(rows) if rows else []), *missing]


def _split(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the rows to show, and a sentence on the groups that were not reached in time."""
    late = [row for row in rows if row['name'] == 'the rest' and row['note'].endswith(TIME_IS_UP)]
    shown = [row for row in rows if row not in late]
    measured = {row['group'] for row in shown}
    groups = sorted({row['group'] for row in late} - measured, key=_order)
    if not groups:
        return shown, []
    return shown, [f'Not measured, because the time was up: {", ".join(groups)}.', '']


def _order(group: str) -> tuple[bool, str]:
    return not group.startswith('EfficientViT'), group


def _details(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return _folded('All forms', _rows(rows))


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return [f'<details><summary>{title}</summary>', '', *lines, '</details>', '']


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return all rows with their spread, ratio and memory."""
    fields = ('group', 'name', 'seconds', 'work', 'against', 'note')
    as_rows = [Row(**{key: row[key] for key in fields}) for row in rows]
    found = []
    for row, plain in zip(as_rows, rows, strict=True):
        cells = [row.group, row.name, str(len(row.seconds))]
        if not row.seconds:
            found.append([*cells, f'not run: {row.note}', '', ''])
            continue
        middle, low, high = (1e3 * x for x in median_and_quartiles(row.seconds))
        cells.append(f'{middle:.3f} ({low:.3f} to {high:.3f})')
        ratio = ratio_of(row, as_rows) if row.against != row.name else None
        cells.append('-' if ratio is None else f'{ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f})')
        cells.append('-' if plain['peak'] is None else f'{plain["peak"] / MIB:,.0f}')
        found.append(cells)
    notes = [f'- {row.group}: {row.note}.' for row in as_rows if row.note and row.seconds]
    heads = ('', 'form', 'calls', 'ms, median (quartiles)', 'times faster', 'peak MiB per call')
    return _table(heads, found) + ([*notes, ''] if notes else [])


def _trainings(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not runs:
        return []
    found = []
    for run in sorted(runs, key=lambda run: (run['model'], run['seed'])):
        metrics = run['metrics']
        found.append([
            label_of(run['model']), run['seed'], f'{run["epochs"]} of {run["of"]}',
            *(f'{metrics[k]:.3f}' if k in metrics else '-'
              for k in ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75')),
            f'{run["seconds"]:.0f}', run['last loss scale'] or '-', run['fault'] or '-',
        ])  # fmt: skip
    how = '`--amp` with dynamic loss scaling' if runs[0]['amp'] else 'float32'
    lines = [
        '## Trainings on blood cells',
        '',
        f'`tools/train.py` from scratch with the light head, {how}, 320x240, batch 8. Several '
        'trainings ran at the same time.',
        '',
    ]
    heads = ('backbone', 'seed', 'epochs', 'AP', 'AP50', 'AP75', 'time s', 'loss scale', 'error')
    return lines + _table(heads, found)


def _checks(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    if not checks:
        return []
    counts = {
        outcome: sum(check['outcome'] == outcome for check in checks)
        for outcome in ('passed', 'failed', 'skipped')
    }
    text = ', '.join(f'{count} {outcome}' for outcome, count in counts.items())
    found = [
        (check['test'], check['outcome'], _figures(check['figures']), check['reason'] or '-')
        for check in checks
    ]
    heads = ('test', 'outcome', 'figures', 'reason')
    lines = ['## Correctness', '', f'`tests/gpu`: {text}.', '']
    return [*lines, *_folded('All tests', _table(heads, found))]


def _figures(figures: Mapping[str, Any]) -> str:
    parts = [
        f'{name} {value:.2g}' if isinstance(value, float) else f'{name} {value}'
        for name, value in figures.items()
    ]
    return '; '.join(parts) or '-'


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f'| {" | ".join(heads)} |', f'|{"---|" * len(heads)}']
    for row in rows:
        cells = (str(cell).replace('|', '\\|').replace('\n', ' ') for cell in row)
        lines.append(f'| {" | ".join(cells)} |')
    return [*lines, '']


def join(contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the first run's results with the sections of later runs that it lacks.

    Raises:
        ValueError: The runs are of different devices, commits or sizes.
    """
    first, *others = contents
    for other in others:
        for key in ('device', 'commit', 'side', 'batch'):
            if first['about'][key] != other['about'][key]:
                raise ValueError(
                    f'{key}: {first["about"][key]!r} in the first run, {other["about"][key]!r} in '
                    'another; only runs of the same device and commit can be merged'
                )
        first['about']['command'] += '\n' + other['about']['command']
        for name in ('rows', 'trainings', 'checks'):
            first[name] = first[name] or other[name]
        first['parts'] = {**first['parts'], **other['parts']}
    return first


def main() -> None:
    """Merge the results of other runs into a JSON file, and write the page beside it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument('json_file', type=Path, help='gpu.json of a run; gets the results')
    parser.add_argument('others', type=Path, nargs='*', help='gpu.json of other runs')
    args = parser.parse_args()
    try:
        contents = [json.loads(file.read_text()) for file in (args.json_file, *args.others)]
        content = join(contents)
        text = markdown(content)
    except (OSError, ValueError, LookupError, TypeError) as error:
        sys.exit(f'error: {args.json_file} is not written: {type(error).__name__}: {error}')
    if args.others:
        args.json_file.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    args.json_file.with_suffix('.md').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
