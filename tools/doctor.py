"""Check environment, data and checkpoint: python tools/doctor.py [CONFIG [CHECKPOINT]].

Exit status: 0 without a red finding, 1 with a red finding, 2 for wrong usage.
"""

import argparse
import importlib.util
import json
import runpy
import signal
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
if ROOT.name == '.mim':  # in a wheel, this file is evit_mm/.mim/tools/doctor.py
    ROOT = ROOT.parents[1]


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Check the environment, the data of a config and a checkpoint'
    )
    parser.add_argument('config', nargs='?', help='config (default: check only the environment)')
    parser.add_argument('checkpoint', nargs='?', help='checkpoint for the model of the config')
    parser.add_argument('--data', metavar='DIR', help='data folder, as for tools/train.py --data')
    parser.add_argument('--json', action='store_true', help='print the findings as JSON')
    parser.add_argument(
        '--all-images', action='store_true', help='decode all images (default: a few)'
    )
    if '' in sys.argv[1:]:
        parser.error('an argument is empty; if it is a shell variable, set it')
    return parser.parse_args()


def load_doctor() -> ModuleType:
    """Load evit_mm.doctor by its path, because a broken package prevents ``import evit_mm``."""
    folder = ROOT / 'evit_mm' / 'doctor'
    spec = importlib.util.spec_from_file_location(
        'evit_mm_doctor', folder / '__init__.py', submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    args = parse_args()
    runpy.run_path(str(ROOT / 'evit_mm' / 'utils' / 'utf8.py'))['use_utf8']()
    sys.path.insert(0, str(ROOT))
    doctor = load_doctor()
    findings = doctor.diagnose(args.config, args.checkpoint, args.all_images, args.data)
    if args.json:
        print(json.dumps(doctor.as_records(findings), indent=1))
    else:
        doctor.show(findings)
    sys.exit(doctor.worst(findings) == 'red')
