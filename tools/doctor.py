"""Check stack, data and checkpoint: python tools/doctor.py [CONFIG [CHECKPOINT]].

Exit status: 0 nothing is red, 1 something is, 2 wrong usage.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
if ROOT.name == '.mim':  # of a wheel: evit_mm/.mim/tools
    ROOT = ROOT.parents[1]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Check the stack, a data set and a checkpoint')
    parser.add_argument('config', nargs='?', help='config file (default: the stack alone)')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint file to test or resume')
    parser.add_argument('--json', action='store_true', help='print JSON in place of lines')
    parser.add_argument('--all-images', action='store_true', help='decode every image, not a few')
    return parser.parse_args()


def load_doctor() -> ModuleType:
    """Load evit_mm.doctor by its path: importing evit_mm fails where its stack is broken."""
    folder = ROOT / 'evit_mm' / 'doctor'
    spec = importlib.util.spec_from_file_location(
        'evit_mm_doctor', folder / '__init__.py', submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == '__main__':
    args = parse_args()
    sys.path.insert(0, str(ROOT))
    doctor = load_doctor()
    findings = doctor.diagnose(args.config, args.checkpoint, args.all_images)
    if args.json:
        print(json.dumps(doctor.as_records(findings), indent=1))
    else:
        doctor.show(findings)
    sys.exit(doctor.worst(findings) == 'red')
