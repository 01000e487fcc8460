"""Inject hundreds of faults and write a page of the results: python -m tests.torture [options].

Each part runs in a separate process and stores its counts by stack in ``state.json`` of the work
folder. An interrupted run therefore continues where it stopped, and one page shows both stacks.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from evit_mm.compare.benchmark.machine import describe
from evit_mm.doctor.stack import installed_version
from tests.conftest import ROOT

NOT_RUN = 'not run'
KILLS_AT_ONCE = 10  # the most that an interruption can lose
# tests that compare several processes with one; their number is in brackets
COMPARED = re.compile(r'processes_equal_one\[(\d+)\]')
TITLES = {'openmmlab': 'OpenMMLab', 'onedl': 'OneDL'}

# the program of each part; its last line of output has the counts
PROGRAMS = {
    'hostile': """
from pathlib import Path
from tests.hostile import hostile_files, loads, trace
count = refused = ran = 0
for name, path in hostile_files(Path({folder!r})):
    error = loads(path)
    count += 1
    refused += error is not None
    ran += trace(path).exists()
result = dict(injected=count, survived=refused, lost=ran)
""",
    'fuzz': """
from tests.fuzz import run_fuzz
cases = run_fuzz({number}, start={start})
result = dict(injected=sum(cases.values()), survived=sum(cases.values()), lost=0, cases=cases)
""",
    'kills': """
from tests.kills import run_kills
found = run_kills({number}, {folder!r}, seed={start})
noise = found['lost'] == 0 and found['worst_difference'] < 1e-4  # of float32 sums
result = dict(found, injected=found['kills'], survived=found['kills'] if noise else 0)
""",
}


def parse_args(args=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--cases', type=int, default=2500, help='number of random cases')
    parser.add_argument(
        '--parts', nargs='+', default=['hostile', 'fuzz', 'kills', 'worlds', 'tests']
    )
    parser.add_argument('--start', type=int, default=0, help='random seed')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs' / 'torture')
    parser.add_argument('--page', type=Path, default=ROOT / 'docs' / 'reliability.md')
    return parser.parse_args(args)


def this_stack():
    """Return the name of the installed stack."""
    return 'onedl' if installed_version('onedl-mmcv') else 'openmmlab'


def read_state(work_dir):
    path = work_dir / 'state.json'
    return json.loads(path.read_text()) if path.exists() else {}


def write_state(work_dir, state):
    """Replace the state in one step. A kill leaves the old or the new file."""
    work_dir.mkdir(parents=True, exist_ok=True)
    new = work_dir / 'state.json.new'
    new.write_text(json.dumps(state, indent=1) + '\n')
    os.replace(new, work_dir / 'state.json')


def environment():
    path = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    return {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}


def run_program(part, **values):
    """Run one of the programs and return its counts, or its error as ``error``."""
    program = PROGRAMS[part].format(**values)
    # spawned processes import the main module again and must not run it
    program = program.strip().replace('\n', '\n    ')
    text = (
        f'import json\nif __name__ == "__main__":\n    {program}\n    print(json.dumps(result))\n'
    )
    script = Path(values['folder']).with_name(f'{Path(values["folder"]).name}.py')
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    if done.returncode:
        missing = [line for line in done.stderr.splitlines() if 'ModuleNotFoundError' in line]
        if missing and 'tests.' in missing[-1]:
            return None  # this checkout does not contain the part
        return {'error': (done.stderr.strip().splitlines() or [f'status {done.returncode}'])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_tests(work_dir, *args):
    """Run pytest and return the number of tests and their names by outcome."""
    from xml.etree import ElementTree

    report = work_dir / f'{this_stack()}.xml'
    work_dir.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *args]
    subprocess.run([*command, f'--junitxml={report}'], cwd=ROOT, env=environment())
    if not report.exists():
        return {'error': 'pytest wrote no report'}
    found = {'passed': [], 'failed': [], 'skipped': []}
    for case in ElementTree.parse(report).iter('testcase'):
        kinds = {child.tag for child in case}
        kind = 'failed' if kinds & {'failure', 'error'} else 'skipped' if 'skipped' in kinds else ''
        found[kind or 'passed'].append(f'{case.get("classname")}::{case.get("name")}')
    return {'injected': sum(map(len, found.values())), 'survived': len(found['passed']), **found}


def run_part(part, args, before):
    """Run the missing cases of one part, and yield its counts after each step."""
    work = args.work_dir / this_stack()
    if part == 'hostile':
        folder = work / f'hostile_{os.getpid()}'  # a rerun uses a new folder
        folder.mkdir(parents=True, exist_ok=True)
        yield run_program(part, folder=str(folder))
    elif part == 'fuzz':
        folder = work / 'fuzz'
        yield run_program(part, folder=str(folder), number=args.cases, start=args.start)
    elif part == 'worlds':
        yield run_tests(args.work_dir, 'tests/runner/test_distributed.py')
    elif part == 'tests':
        yield run_tests(args.work_dir, '-m', 'not slow')
    elif part == 'kills':
        total = dict(before or {'injected': 0, 'survived': 0, 'lost': 0, 'points': {}})
        total.pop('error', None)
        while total['injected'] < args.kills:
            start = args.start + total['injected']
            number = min(KILLS_AT_ONCE, args.kills - total['injected'])
            folder = work / f'kills_{start}_{os.getpid()}'
            found = run_program(part, folder=str(folder), number=number, start=start)
            if not found or 'error' in found:
                yield {**total, **found} if found else None
                return
            total = add_kills(total, found)
            yield total


def add_kills(total, found):
    points = dict(total['points'])
    for point, count in found['points'].items():
        points[point] = points.get(point, 0) + count
    worst = max(total.get('worst_difference', 0.0), found['worst_difference'])
    sums = {key: total[key] + found[key] for key in ('injected', 'survived', 'lost')}
    runs = total.get('runs', 0) + found['runs']
    return {**sums, 'points': points, 'runs': runs, 'worst_difference': worst}


def wanted(part, args):
    """Return the options of a part; if they change, it runs again."""
    return {'kills': args.kills, 'fuzz': [args.cases, args.start]}.get(part, '')


def torture(args):
    """Run the missing parts on this stack, and write the page."""
    stack = this_stack()
    for part in args.parts:
        state = read_state(args.work_dir)
        mine = state.setdefault(stack, {})
        done = mine.get(part)
        finished = done and 'error' not in done and done.get('wanted') == wanted(part, args)
        if finished and (part != 'kills' or done['injected'] >= args.kills):
            print(f'{part}: already done')
            continue
        for found in run_part(part, args, done):
            if found is None:
                print(f'{part}: {NOT_RUN}, this checkout does not contain it')
                break
            mine[part] = {**found, 'wanted': wanted(part, args)}
            mine['made'] = describe(1)
            write_state(args.work_dir, state)
            print(f'{part}: {found.get("error") or found["injected"]}')
    args.page.write_text(page(read_state(args.work_dir)))
    print(f'written: {args.page}')


def page(state):
    """Return the page for a state."""
    rows = [
        ('trainings killed (`kill -9`) and resumed', 'kills', lambda f: f['lost']),
        ('hostile and broken checkpoint files', 'hostile', lambda f: f['lost']),
        ('random networks, annotation files and checkpoints', 'fuzz', lambda f: f['lost']),
        ('tests with several processes', 'worlds', lambda f: len(f['failed'])),
        ('tests (`-m "not slow"`)', 'tests', lambda f: len(f['failed'])),
    ]
    lines = [
        '# Reliability',
        '',
        '`make torture` injects faults, runs the tests and writes this page. If it is interrupted, '
        'run it again to continue.',
        '',
        '| test | stack | cases | passed | lost |',
        '|---|---|---|---|---|',
    ]
    for title, part, lost in rows:
        for stack, name in TITLES.items():
            found = state.get(stack, {}).get(part)
            lines.append(f'| {title} | {name} | {_cells(found, lost)} |')
    lines += ['', *EXPLANATION, '', '## Details', '', *_notes(state), '## Environment', '']
    for stack, name in TITLES.items():
        made = state.get(stack, {}).get('made')
        text = ', '.join(f'{key} {value}' for key, value in made.items()) if made else NOT_RUN
        lines.append(f'- {name}: {text}')
    return '\n'.join(lines) + '\n'


def _cells(found, lost):
    if not found:
        return ' | '.join([NOT_RUN] * 3)
    if 'survived' not in found:
        return f'failed: {found["error"][:200]} | - | -'
    ended = f', then ended: {found["error"][:200]}' if 'error' in found else ''
    return f'{found["injected"]}{ended} | {found["survived"]} | {lost(found)}'


def _notes(state):
    for stack, name in TITLES.items():
        parts = state.get(stack, {})
        kills = parts.get('kills')
        if kills and kills.get('runs'):
            points = ', '.join(f'{point} {count}' for point, count in kills['points'].items())
            yield (
                f'{name}, kills by phase in {kills["runs"]} trainings: {points}. The largest '
                f'relative difference of a loss or a final weight from an uninterrupted training '
                f'is {kills["worst_difference"]:.1e}.'
            )
            yield ''
        if parts.get('fuzz', {}).get('cases'):
            cases = ', '.join(f'`{key}` {n}' for key, n in parts['fuzz']['cases'].items())
            yield f'{name}, random cases: {cases}.'
            yield ''
        if parts.get('worlds', {}).get('passed'):
            matches = filter(None, map(COMPARED.search, parts['worlds']['passed']))
            sizes = sorted({1, *(int(match[1]) for match in matches)})
            yield f'{name}, numbers of processes with equal results: {", ".join(map(str, sizes))}.'
            yield ''
        for part in ('worlds', 'tests'):
            for outcome in ('failed', 'skipped'):
                for test in parts.get(part, {}).get(outcome, []):
                    yield f'- {name}, {outcome}: `{test}`'
    yield ''


EXPLANATION = [
    '## Definitions',
    '',
    '- **Killed trainings**: a training passes if it is resumed to its end and has the losses and',
    '  the final weights of an uninterrupted training. "Lost" counts iterations that are missing',
    '  or that used other images.',
    '- **Hostile files**: a file passes if the package rejects it with its own error.',
    '  "Lost" counts files that ran code.',
    '- **Random cases**: a case passes if its result is correct (compared with float64 or with',
    "  mmdet's loader), or if the package rejects it with its own error. Any other outcome",
    '  stops this part, and the table shows the error.',
    '- **Tests**: "lost" counts failed tests.',
]


if __name__ == '__main__':
    torture(parse_args())
