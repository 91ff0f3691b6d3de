"""Run the faults of the table and count how their commands end: ``python -m tests.faults``.

Each command runs in a forked process and a folder of its own. With ``--json``, what ended as it
should is written down and is not tried again.
"""
import argparse
import importlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Set

import mmengine.config.config
from rich.console import Console
from rich.table import Table

from groupdetr_mmdet.checkpoints.reading import is_whole
from groupdetr_mmdet.commands import cli

from .table import CHECKPOINT, COCO, FAULTS, Fault

import tiny  # isort: skip, only after the table
from running import fork_session, wait_for  # isort: skip

CLEAR, HARMLESS, TRACEBACK, SILENT, HANG, LOST = ENDS = (
    'clear sentence', 'harmless or warned', 'traceback', 'silently wrong', 'hang', 'lost')
UNREADABLE = 1  # the status of predict where an image cannot be read


class Result(NamedTuple):
    """How a command ended, one of ``ENDS``, whether it should, and what it said last."""
    end: str
    as_expected: bool
    said: str


def run_forked(command: List[str], damage: Callable, seconds: float) -> Optional[int]:
    """Make a fault, run a command with its output in a file; return its status, None in a hang."""
    def run() -> int:
        damage()
        try:
            cli.main(command)
        except SystemExit as end:
            return end.code or 0
        return 0

    said = Path('said')
    said.write_text('')
    return wait_for(fork_session(run, said), seconds)


def whole_checkpoints() -> Set[Path]:
    return {path for path in Path('work').glob('*.pth') if is_whole(path)}


def try_fault(fault: Fault, seconds: float) -> Result:
    """Run the command of a fault in the current folder."""
    def damage() -> None:
        fault.damage()
        Path('whole').write_text('\n'.join(map(str, whole_checkpoints())))

    status = run_forked(shlex.split(fault.command), damage, seconds)
    said = Path('said').read_text(errors='replace')
    before = set(map(Path, Path('whole').read_text().split()))
    lines = [line for line in said.splitlines() if line.strip()] or ['']
    refusals = [line for line in lines if 'error: ' in line]
    if status is None:
        end = HANG
    elif before - whole_checkpoints():
        end = LOST
    elif 'Traceback (most recent call last)' in said:
        end = TRACEBACK
    elif status == 2 and refusals:
        end = CLEAR
    elif status in (0, UNREADABLE):
        end = HARMLESS if fault.goes_on and fault.words in said else SILENT
    else:
        end = TRACEBACK
    expected = HARMLESS if fault.goes_on else CLEAR
    last = refusals[-1] if end == CLEAR else lines[-1]
    words = said if fault.goes_on else last
    return Result(end, end == expected and fault.words in words, last)


def make_template(folder: Path) -> None:
    """Write the sound data set, its config and its training into a folder."""
    folder.mkdir()
    os.chdir(folder)
    cfg = tiny.tiny_config(tiny.write_tiny_coco(COCO))
    cfg.default_hooks.checkpoint.save_best = 'coco/bbox_mAP'
    cfg.dump('tiny.py')
    status = run_forked(shlex.split('train tiny.py --work-dir work'), lambda: None, 600)
    assert status == 0 and is_whole(CHECKPOINT), Path('said').read_text()


def show(results: dict) -> None:
    """Print the counts by kind, and what did not end as it should."""
    kinds = sorted({name.split('/')[0] for name in results})
    table = Table('kind', 'faults', *ENDS)
    for kind in (*kinds, ''):
        counts = Counter(x.end for name, x in results.items() if name.startswith(kind))
        table.add_row(kind or 'all', str(sum(counts.values())), *(str(counts[x]) for x in ENDS))
    Console().print(table)
    for name, result in results.items():
        if not result.as_expected:
            print(f'{name}: {result.end}: {result.said}')


def main() -> None:
    parser = argparse.ArgumentParser(prog='python -m tests.faults', description=__doc__)
    parser.add_argument('--only', default='', metavar='WORDS', help='part of the names to try')
    parser.add_argument('--json', type=Path, metavar='FILE', help='where results are kept')
    parser.add_argument('--seconds', type=float, default=120, help='after which a command hangs')
    args = parser.parse_args()
    kept = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    results = {name: Result(*x) for name, x in kept.items() if name in FAULTS}
    file = args.json and args.json.resolve()
    todo = [fault for name, fault in FAULTS.items() if args.only in name and not (
        name in results and results[name].as_expected)]
    for command in cli.COMMANDS:  # so that no forked process has to
        importlib.import_module(f'groupdetr_mmdet.commands.{command.replace("-", "_")}')
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)  # a second at every start
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, 'place')  # the same for all: checkpoints name it
        make_template(place)
        template = place.rename(Path(folder, 'template'))
        for i, fault in enumerate(todo, 1):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(template, place, symlinks=True)
            os.chdir(place)
            results[fault.name] = result = try_fault(fault, args.seconds)
            print(f'{i}/{len(todo)} {fault.name}: {result.end}'
                  f'{"" if result.as_expected else ": " + result.said}', flush=True)
            if file:
                file.write_text(json.dumps(results, indent=0))
        os.chdir('/')
    show(results)
    sys.exit(not all(x.as_expected for x in results.values()))


if __name__ == '__main__':
    main()
