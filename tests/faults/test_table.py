"""Faults of checkpoints and of places to write, each as one command where all else is sound.

``pytest -m long tests/faults/test_table.py``; every command runs in a forked process, in a folder
with a data set in ``coco``, a config ``tiny.py`` and its training of two epochs in ``work``.
Tables of other tests are taken where there are any, for every command that reads.
"""
import errno
import os
import shlex
import shutil
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Tuple

import pytest
import test_paths as paths
import test_resume_faults as resume
import torch
from running import fork_session, wait_for
from tiny import tiny_config, write_tiny_coco

from groupdetr_mmdet.checkpoints.reading import is_whole
from groupdetr_mmdet.commands import cli
from groupdetr_mmdet.io import lock_work_dir

sys.path.append(str(Path(__file__).parents[1] / 'checkpoints'))
import test_reading as reading  # noqa: E402
import test_weights as weights  # noqa: E402

COCO, CHECKPOINT = Path('coco'), Path('work/epoch_2.pth')
TRAIN = 'train tiny.py --work-dir new --cfg-options train_cfg.max_epochs=1'
TEST = 'test tiny.py work/epoch_2.pth --work-dir tested'
UNREADABLE = 1  # the status of predict where an image cannot be read


class Fault(NamedTuple):
    """A fault, and how the command should end.

    Attributes:
        name (str): Its kind, its place and what it is.
        command (str): As on a command line.
        words (str): A part of the error or warning.
        goes_on (bool): Whether the command does its work all the same.
        damage (Callable): Makes the fault in the current folder.
    """
    name: str
    command: str
    words: str = ''
    goes_on: bool = False
    damage: Callable[[], Any] = lambda: None


def flip_a_bit(path: Path, checkpoint: dict) -> None:
    content = bytearray(CHECKPOINT.read_bytes())
    with zipfile.ZipFile(CHECKPOINT) as archive:
        largest = max(archive.infolist(), key=lambda x: x.file_size)
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def change_weights(change: Callable) -> Callable:
    return resume.changed(lambda x: x.update(state_dict={
        name: change(tensor) for name, tensor in x['state_dict'].items()}))


def place(name: str) -> Tuple[Callable, str]:
    make, words = paths.PLACES[name]
    return lambda path, _: make(path), words


WEIGHTS = {  # change of the training's checkpoint, and words of the error
    **{name: (resume.changed(change), '') for name, (change, _) in weights.FAULTS.items()},
    **{name: (partial(lambda change, path, _: path.write_bytes(change(CHECKPOINT.read_bytes())),
                      change), '') for name, change in reading.DAMAGES.items()},
    **{name: place(name) for name in paths.PLACES},
    'a wrong checksum': (flip_a_bit, ''),
    'all NaN': (change_weights(lambda x: x * torch.nan), ''),
    'lists for tensors': (change_weights(lambda x: x.tolist()), ''),
    'complex numbers': (change_weights(lambda x: x.to(torch.complex64)), ''),
    'sparse tensors': (change_weights(lambda x: x.to_sparse() if x.dim() else x), ''),
    'no state dict': (resume.changed(lambda x: x.update(state_dict=None)), ''),
    'a whole model': (resume.changed(lambda x: torch.nn.Linear(2, 2)), ''),
    'a number': (resume.changed(lambda x: 7), ''),
}
READERS = {
    'test': 'test tiny.py x.pth --work-dir tested',
    'predict': 'predict coco/images tiny.py x.pth --out found',
    'report': 'report work --checkpoint x.pth',
    'convert': 'convert tiny.py x.pth out.pth',
    'export': 'export tiny.py x.pth out.onnx',
    'draw-queries': 'draw-queries tiny.py x.pth --out out.png',
    'load_from': f'{TRAIN} load_from=x.pth',
    '--resume': 'train tiny.py --work-dir new --resume x.pth',
    'init_cfg': f'{TRAIN} model.init_cfg.type=Pretrained model.init_cfg.checkpoint=x.pth',
}


def checkpoint_faults() -> Iterator[Fault]:
    def make(write: Callable) -> None:
        write(Path('x.pth'), torch.load(CHECKPOINT, weights_only=False))

    for reader, command in READERS.items():
        for name, (write, words) in WEIGHTS.items():
            yield Fault(f'checkpoint/{reader} {name}', command, words, damage=partial(make, write))
        yield Fault(f'checkpoint/{reader} unreachable',
                    command.replace('x.pth', 'http://127.0.0.1:9/x.pth'), 'cannot be fetched')
    go_on = 'train tiny.py --work-dir new --resume x.pth --cfg-options visualizer.name=x {}'
    for name, (write, options, words) in resume.REFUSED.items():
        yield Fault(f'resume/{name}', go_on.format(' '.join(options)), words.format(path='x.pth'),
                    damage=partial(make, write))
    for name, (write, epochs, words) in resume.ANNOUNCED.items():
        yield Fault(f'resume/{name}', go_on.format(f'train_cfg.max_epochs={epochs}'), words, True,
                    partial(make, write))
    last = 'train tiny.py --work-dir work --resume'
    yield Fault('resume/the last is cut', last, 'cut short', True, lambda: shorten('epoch_2.pth'))
    yield Fault('resume/all are cut', last, 'cut short', False, lambda: shorten('*.pth'))
    yield Fault('resume/nothing yet', f'{TRAIN} resume=True', 'has no checkpoint', True)
    for text in ('{', '', '[]', 'null', '{}'):
        for command in ('predict coco/images tiny.py work/epoch_2.pth --out found',
                        'export tiny.py work/epoch_2.pth a.onnx'):
            yield Fault(f'record/{command.split()[0]} {text!r}', f'{command} --query-group best',
                        'epoch_2.groups.json', damage=partial(
                            Path('work/epoch_2.groups.json').write_text, text))


def shorten(pattern: str) -> None:
    for path in Path('work').glob(pattern):
        path.write_bytes(path.read_bytes()[:-3000])


def fill_the_disk() -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = full


def link_to_full() -> None:
    for suffix in ('', '.pkl', '.onnx', '.pth', '.html', '.png', '.py'):
        os.symlink('/dev/full', f'full{suffix}')


def lock() -> None:
    globals().update(held=lock_work_dir('new'))


OUTPUTS = {
    'train': 'train tiny.py --work-dir {}', 'test': f'{TEST} --out {{}}.pkl',
    'predict': 'predict coco/images tiny.py work/epoch_2.pth --out {}',
    'export': 'export tiny.py work/epoch_2.pth {}.onnx',
    'convert': 'convert tiny.py work/epoch_2.pth {}.pth', 'report': 'report work --out {}.html',
    'plot-runs': 'plot-runs work --out {}.png', 'prepare': 'prepare coco --out {}.py',
    'draw-queries': 'draw-queries tiny.py work/epoch_2.pth --out {}.png',
    'make-shapes': 'make-shapes {} --num-train 2 --num-val 1',
}


def system_faults() -> Iterator[Fault]:
    for command, output in OUTPUTS.items():
        for name, out, make in (
                ('below a file', 'file/x', lambda: Path('file').write_text('')),
                ('in /proc', '/proc/x', lambda: None),
                ('a full device', 'full', link_to_full)):
            yield Fault(f'system/{command} {name}', output.format(out), damage=make)
    yield Fault('system/full disk', TRAIN, 'No space left', damage=fill_the_disk)
    yield Fault('system/in use', TRAIN, 'is in use by another training', damage=lock)
    yield Fault('system/used before', TRAIN.replace('new', 'work'), 'starts anew', True)
    yield Fault('system/data gone', TRAIN, 'train.json', damage=lambda: shutil.rmtree(COCO))


FAULTS = {fault.name: fault for make in (checkpoint_faults, system_faults) for fault in make()}


def whole_checkpoints() -> set:
    return {path for path in Path('work').glob('*.pth') if is_whole(path)}


def run_forked(command: str, damage: Callable) -> Tuple[int, str]:
    """Make a fault and run a command; return its status, None in a hang, and what it printed."""
    def run() -> int:
        damage()
        Path('whole').write_text('\n'.join(map(str, whole_checkpoints())))
        try:
            cli.main(shlex.split(command))
        except SystemExit as end:
            return end.code or 0
        return 0

    status = wait_for(fork_session(run, Path('output')), seconds=120)
    return status, Path('output').read_text(errors='replace')


@pytest.fixture(scope='module')
def template(tmp_path_factory) -> Path:
    """A folder with the sound data set, its config and its training."""
    folder = tmp_path_factory.mktemp('faults') / 'place'  # the same for all: checkpoints name it
    folder.mkdir()
    before = os.getcwd()
    os.chdir(folder)
    cfg = tiny_config(write_tiny_coco(COCO))
    cfg.default_hooks.checkpoint.save_best = 'coco/bbox_mAP'
    cfg.dump('tiny.py')
    status, output = run_forked('train tiny.py --work-dir work', lambda: None)
    assert status == 0 and is_whole(CHECKPOINT), output
    os.chdir(before)
    return folder.rename(folder.with_name('template'))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_told_in_a_line_and_nothing_is_lost(template, monkeypatch, name):
    fault, place = FAULTS[name], template.with_name('place')
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place, symlinks=True)
    monkeypatch.chdir(place)
    status, output = run_forked(fault.command, fault.damage)
    before = set(map(Path, Path('whole').read_text().split()))
    assert before <= whole_checkpoints(), output
    assert 'Traceback (most recent call last)' not in output, output
    if fault.goes_on:
        assert status in (0, UNREADABLE) and fault.words in output, output
    else:
        refusals = [line for line in output.splitlines() if 'error: ' in line]
        assert status == 2 and refusals and fault.words in refusals[-1], output
