"""Faults that people make, each as one command in a folder where all else is sound.

The folder has a data set in ``coco``, a config ``tiny.py`` and its training of two epochs in
``work``. Tables of the tests are taken where there are any, in every place they can stand in.
"""
import errno
import os
import shutil
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Tuple

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / room) for room in ('', 'faults', 'data', 'checkpoints')]

import test_annotations as data  # noqa: E402
import test_config as config  # noqa: E402
import test_layouts as layouts  # noqa: E402
import test_paths as paths  # noqa: E402
import test_reading as reading  # noqa: E402
import test_resume_faults as resume  # noqa: E402
import test_run_checks as run_checks  # noqa: E402
import test_weights as weights  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
from layout_builders import write_layout  # noqa: E402
from mmengine.config import Config  # noqa: E402

from groupdetr_mmdet.io import lock_work_dir  # noqa: E402

COCO, CHECKPOINT = Path('coco'), Path('work/epoch_2.pth')
TRAIN = 'train tiny.py --work-dir new --cfg-options train_cfg.max_epochs=1'
TEST = 'test tiny.py work/epoch_2.pth --work-dir tested'
PREDICT = 'predict coco/images tiny.py work/epoch_2.pth --out found'
PLACES = dict(train=('train', TRAIN), val=('val', TRAIN), test=('val', TEST))


class Fault(NamedTuple):
    """A fault, and how the command should end.

    Attributes:
        name (str): Its kind, its place and what it is.
        command (str): As on a command line.
        words (str): A part of the sentence that refuses it, or of what is said of it.
        goes_on (bool): Whether the command does its work all the same.
        damage (Callable): Makes the fault in the current folder.
    """
    name: str
    command: str
    words: str = ''
    goes_on: bool = False
    damage: Callable[[], Any] = lambda: None


def annotation_faults() -> Iterator[Fault]:
    for place, (split, command) in PLACES.items():
        path = COCO / f'{split}.json'
        changes = {**data.ALWAYS_REFUSED, **data.WARNED, 'NaN': (data.NAN_BOX, 'id 2'),
                   '1e30': (data.HUGE, 'id 2')}
        warned = {*data.WARNED, 'NaN' if place == 'train' else '1e30'}
        for name, (damage, words) in changes.items():
            yield Fault(f'data/{place} {name}', command, words, name in warned,
                        partial(tiny.change_coco, COCO, damage, split))
        for name, encode in data.ENCODINGS.items():
            yield Fault(f'data/{place} {name}', command, path.name, damage=partial(
                lambda path, encode: path.write_bytes(encode(path.read_text())), path, encode))
        for name, damage in data.IMAGES.items():
            image = COCO / f'images/{split}_3.jpg'
            yield Fault(f'image/{place} {name}', command, image.name,
                        damage=partial(damage, image))
    for name, damage in data.IMAGES.items():
        words = '' if name == 'another size' else 'val_3.jpg'
        yield Fault(f'image/predict {name}', PREDICT, words, True,
                    partial(damage, COCO / 'images/val_3.jpg'))
    for size, words in ((64, '48 x 64 pixels'), (48, '')):
        yield Fault(f'image/train turned by EXIF, said to be {size} wide', TRAIN, words, not words,
                    partial(data.write_rotated, COCO, size, 112 - size))
    yield Fault('data/train more objects than queries', f'{TRAIN} model.num_queries=2',
                'raise num_queries', True)


def layout_faults() -> Iterator[Fault]:
    for name, (kind, damage, words) in layouts.FAULTS.items():
        def make(kind: str = kind, damage: Callable = damage) -> None:
            damage(write_layout(kind, COCO, Path('photos').resolve()))

        yield Fault(f'folder/{kind} {name}', 'prepare photos --out mine.py --weights none '
                    '--model small', words.split('.*')[0], damage=make)


def edit(change: Callable[[Config], Any]) -> None:
    """Change the config."""
    cfg = Config.fromfile('tiny.py')
    change(cfg)
    cfg.dump('tiny.py')


def config_faults() -> Iterator[Fault]:
    for option, words in config.LINES.items():
        yield Fault(f'config/{option}', f'{TRAIN} "{option}"', words[0])
    for name, (file, content, words) in config.FILES.items():
        for command in ('train {} --work-dir new', 'test {0} {0}'):
            yield Fault(f'config/{command.split()[0]} {name}', command.format(file), words,
                        damage=partial(lambda file, text: Path(file).write_text(text), file,
                                       content))
    for name, (change, words) in run_checks.FAULTS.items():
        yield Fault(f'config/{name}', TRAIN, words,
                    damage=partial(edit, lambda cfg, change=change: change(cfg, COCO)))
    yield Fault('config/lr 1e18', f'{TRAIN} optim_wrapper.optimizer.lr=1e18 '
                'optim_wrapper.clip_grad=None', 'lower optim_wrapper')
    for command in ('test {1} {0}', 'export {1} {0} a.onnx', 'predict coco {1} {0} --out found'):
        yield Fault(f'config/swapped {command.split()[0]}', command.format('tiny.py', CHECKPOINT),
                    'swapped')


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


WEIGHTS = {  # what is made of the checkpoint of the training, and what is said
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


LABELS = '$x$', '$\\frac$', 'a_b^c', '<b>&', '%s {0}'
OUTPUTS = {
    'train': 'train tiny.py --work-dir {}', 'test': f'{TEST} --out {{}}.pkl',
    'predict': 'predict coco/images tiny.py work/epoch_2.pth --out {}',
    'export': 'export tiny.py work/epoch_2.pth {}.onnx',
    'convert': 'convert tiny.py work/epoch_2.pth {}.pth', 'report': 'report work --out {}.html',
    'plot-runs': 'plot-runs work --out {}.png', 'prepare': 'prepare coco --out {}.py',
    'draw-queries': 'draw-queries tiny.py work/epoch_2.pth --out {}.png',
    'make-shapes': 'make-shapes {} --num-train 2 --num-val 1',
}
ARGUMENTS = {
    'train tiny.py --work-dir new': '--epochs 0, --resume nowhere.pth, --foo, '
    '--cfg-options a, --cfg-options model.num_queries',
    TEST: '--out a.txt, --out coco/train.json/x.pkl, --query-group 3',
    PREDICT: '--score-thr nan, --classes foo, --batch-size 0, --device abc, --device cuda:99, '
    '--query-group 7, --ann-file nowhere.json',
    'export tiny.py work/epoch_2.pth a.onnx': '--opset 3, --query-group 9',
    'convert tiny.py work/epoch_2.pth a.pth': '--noise nan, --noise -1, --num-queries 7, '
    '--to foo, --to mmdet --query-group 9',
    'make-shapes new': '--num-train 0, --size -5, --seed -1',
    'prepare coco --out mine.py': '--val-fraction nan, --model foo, --weights nowhere.pth',
    'report work': '--compare nowhere, --labels a b, --checkpoint nowhere.pth',
}


def system_faults() -> Iterator[Fault]:
    for command, output in OUTPUTS.items():
        for name, out, make in (
                ('below a file', 'file/x', lambda: Path('file').write_text('')),
                ('in /proc', '/proc/x', lambda: None),
                ('a full device', 'full', link_to_full)):
            yield Fault(f'system/{command} {name}', output.format(out), damage=make)
    for command, given in ARGUMENTS.items():
        for arguments in given.split(', '):
            yield Fault(f'arguments/{command.split()[0]} {arguments}', f'{command} {arguments}',
                        arguments.split()[-1])
    yield Fault('system/full disk', TRAIN, 'No space left', damage=fill_the_disk)
    yield Fault('system/in use', TRAIN, 'is in use by another training', damage=lock)
    yield Fault('system/used before', TRAIN.replace('new', 'work'), 'starts anew', True)
    yield Fault('system/data gone', TRAIN, 'train.json', damage=lambda: shutil.rmtree(COCO))
    for command in ('plot-runs work work --out a.png', 'report work --compare work'):
        for label in LABELS:
            yield Fault(f'names/{command.split()[0]} {label}',
                        f"{command} --labels '{label}' other", goes_on=True)


FAULTS = {fault.name: fault for make in (
    annotation_faults, layout_faults, config_faults, checkpoint_faults, system_faults)
    for fault in make()}
