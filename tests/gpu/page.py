"""The page on a GPU, made of the JSON that the command writes."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evit_mm.compare.benchmark.timing import Row, median_and_quartiles, ratio_of
from evit_mm.compare.published_results import label_of

MIB = 2**20
NOT_RUN = """# On a GPU

**Not run on a GPU.** `make gpu` runs what only a GPU can show, in about eight minutes, and
writes this page.
"""
# timm's own table: RTX Pro 6000 Max-Q, AMP, torch 2.9.1, 224 px, batch 2048; images/s
PUBLISHED = {
    'EfficientViT-M0': (87_661, 159_362),
    'EfficientViT-M1': (60_008, 111_233),
    'EfficientViT-M2': (55_055, 103_015),
    'EfficientViT-M3': (49_338, 93_676),
    'EfficientViT-M4': (47_081, 89_707),
    'EfficientViT-M5': (31_163, 64_718),
    'MobileNetV2': (15_380, 26_549),
    'MobileNetV4-small': (39_546, 88_000),
}
# columns of the tables at the top, of a large batch and of one image
SUMMARY = (
    'timm, eager',
    'timm, channels last',
    'timm, compiled',
    'ours, eager',
    'ours, contiguous, eager',
    'ours, compiled',
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


def markdown(content: Mapping[str, Any]) -> str:
    """Return the page."""
    if not content.get('about'):
        return NOT_RUN
    about = content['about']
    lines = ['# On a GPU', '']
    if about.get('tiny'):
        lines += ['**A rehearsal at tiny sizes: its figures say nothing.**', '']
    lines += [
        f'{about["device"]}, run on {about["date"]}; every timed call is in the '
        'JSON beside this page.',
        '',
        '```bash',
        about['command'],
        '```',
        '',
        *_table(('', ''), [(key, value) for key, value in about.items() if key != 'command']),
    ]
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in content['rows']:
        rows.setdefault(row['table'], []).append(row)
    lines += _limits(rows.get('limits', []))
    for table, names in (('batch', SUMMARY), ('one', LATENCIES)):
        lines += _classifiers(rows.get(table, []), table, names, about)
    lines += _section(
        'RetinaNet-M4: prediction',
        'From image tensors on the CPU to boxes, float32 without TF32 unless it says AMP '
        '(float16); random weights, the scores scaled so that about a thousand pass the threshold.',
        rows.get('detection', []),
    )
    lines += _section(
        'Training steps',
        "Forward, loss and backward of a detector with our backbone and with timm's in its place. "
        "Times faster: than timm's backbone in the same precision.",
        rows.get('steps', []),
    )
    lines += _trainings(content['trainings'])
    lines += _checks(content['checks'])
    lines += ['## How the command went', '']
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
    return ['## The card', '', *_table(('', 'median'), found)] if found else []


def _classifiers(
    rows: Sequence[Mapping[str, Any]],
    table: str,
    names: Sequence[str],
    about: Mapping[str, Any],
) -> list[str]:
    if not rows:
        return []
    side, batch = about['side'], about['batch']
    if table == 'batch':
        title = f'Classifiers, {side} px, batch {batch}, AMP'
        text = 'Images per second, by the median call'
    else:
        title = f'Classifiers, {side} px, one image, half precision'
        text = 'Milliseconds of one call, median'
    by_name = {(row['group'], row['name']): row for row in rows}
    groups = list(dict.fromkeys(row['group'] for row in rows))
    groups.sort(key=lambda group: (not group.startswith('EfficientViT'), group))
    rows = sorted(rows, key=lambda row: groups.index(row['group']))
    columns = [name for name in names if any((group, name) in by_name for group in groups)]
    heads = ['', *columns]
    published = table == 'batch'
    if published:
        heads += ["timm's table, eager", "timm's table, compiled"]
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
    text += (
        '; "-" was not run or is no such form. cuDNN chooses its algorithms by trying them; what '
        'is compiled was compiled by torch.compile with its defaults, beside other work.'
    )
    lines = [f'## {title}', '', text, '']
    lines += _table(heads, found)
    if published:
        lines += [
            "timm's table: RTX Pro 6000 Max-Q, AMP, torch 2.9.1, batch 2048, as published.",
            '',
        ]
    return lines + _details(rows)


def _section(title: str, text: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f'## {title}', '', text, '', *_rows(rows)] if rows else []


def _details(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return ['<details><summary>Every form</summary>', '', *_rows(rows), '</details>', '']


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every row with its spread, its ratio and its memory."""
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
    notes = [f'{row.group}: {row.note}.' for row in as_rows if row.note and row.seconds]
    heads = ('', 'form', 'calls', 'ms, median (quartiles)', 'times faster', 'peak MiB of a call')
    lines = _table(heads, found)
    for note in notes:
        lines += [note, '']
    return lines


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
        f'`tools/train.py` from scratch, {how}, the light head, 320x240, batch 8, several runs '
        'side by side.',
        '',
    ]
    heads = ('backbone', 'seed', 'epochs', 'AP', 'AP50', 'AP75', 's', 'loss scale', 'fault')
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
    heads = ('test', 'outcome', 'figures', 'why')
    return ['## Correctness', '', f'`tests/gpu`: {text}.', '', *_table(heads, found)]


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
    """Return several runs' results as one: what the first lacks, the next add."""
    first, *others = contents
    for other in others:
        first['about']['command'] += '\n' + other['about']['command']
        for name in ('rows', 'trainings', 'checks'):
            first[name] = first[name] or other[name]
        first['parts'] = {**first['parts'], **other['parts']}
    return first


def main(json_file: str, *others: str) -> None:
    """Write the page beside its JSON; the results of other runs are added to it."""
    path = Path(json_file)
    content = join([json.loads(Path(file).read_text()) for file in (path, *others)])
    if others:
        path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    path.with_suffix('.md').write_text(markdown(content), encoding='utf-8')


if __name__ == '__main__':
    main(*sys.argv[1:])
