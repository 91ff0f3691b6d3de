"""Write a config for a folder of images and labels, in the layout of YOLO, COCO,
Roboflow, Pascal VOC or labelImg, and the labels as COCO beside it. The folder is not changed."""
import argparse
import os
from collections import Counter
from pathlib import Path
from shlex import quote
from typing import List, Tuple

import numpy as np
from mmengine.device import get_device

from ..checkpoints.named import resolve_weights, saved_numbers
from ..errors import ConfigError
from ..io import check_output
from ..data.layouts import LabeledImage, read_dataset
from ..training.recipe import AUGMENTATIONS, MODELS, complete_splits, write_training
from .common import positive, print_table

DEFAULTS = dict(model='cond', weights='coco', val_fraction=0.2, seed=0, train=None, val=None,
                test=None, image_size=None, augment=None)
SPLITS = 'train', 'val', 'test'
AREAS = 0, 32**2, 96**2, np.inf  # COCO's small, medium and large objects, in square pixels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('data', metavar='DATA',
                        help='folder of images and labels, or the label file to use')
    parser.add_argument('--out', help='config to write (default: the name of the folder, .py)')
    add_choices(parser)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``prepare`` and ``train DATA`` share."""
    add = parser.add_argument_group('with DATA, a folder of images').add_argument
    add('--model', choices=list(MODELS), help='Conditional, DAB-, Deformable DETR or DINO with a '
        'ResNet-50, or a small Conditional DETR for a CPU (default: cond)')
    add('--weights', metavar='coco|none|FILE', help='weights to start from: trained on COCO, '
        'none, or a path, address or hf://OWNER/NAME (default: coco)')
    add('--image-size', type=positive, metavar='N', help='shorter side of images, in pixels '
        "(default: the model's)")
    add('--augment', choices=list(AUGMENTATIONS), help='augmentation: light flips, detr also '
        'resizes and crops, strong also mixes images and changes colors')
    add('--val-fraction', type=float, help='fraction of images for validation, if the folder '
        'has no such split (default: 0.2)')
    add('--seed', '--split-seed', type=int, help='seed that chooses these images (default: 0)')
    for split in SPLITS:
        add(f'--{split}', nargs='+', metavar='FILE', help=f'label files of the split {split}')


def folder_of(data: str) -> Path:
    path = Path(os.path.realpath(data))
    return path.parent if path.is_file() else path


def default_out(data: str) -> Path:
    """Return the default name of the config for a data set."""
    return Path(f'{folder_of(data).name}.py')


def prepare(args: argparse.Namespace, data: str, out: Path) -> None:
    """Write a config for a data set, and print a table and notes."""
    choices = {name: default if getattr(args, name) is None else getattr(args, name)
               for name, default in DEFAULTS.items()}
    if not 0 < choices['val_fraction'] < 1:
        raise ConfigError(f'--val-fraction {choices["val_fraction"]} must be above 0 and below 1.')
    files = {split: choices[split] for split in SPLITS if choices[split]}
    if files and ('train' not in files or not Path(data).is_dir()):
        raise ConfigError(f'--{min(files)} requires --train, and a folder of images as DATA, here '
                          f'{data}: name both.')
    check_out(out, data)
    model = MODELS[choices['model']]
    load_from = resolve_weights(choices['weights'], model.weights)
    dataset = read_dataset(data, files)
    complete_splits(dataset, choices['val_fraction'], choices['seed'])
    write_training(dataset, data, out, model, load_from, saved_numbers(load_from),
                   choices['image_size'], choices['augment'])
    columns = [describe(dataset.classes, images) for images in dataset.splits.values()]
    print_table((dataset.layout, *dataset.splits),
                ((rows[0][0], *(value for _, value in rows)) for rows in zip(*columns)))
    for note in dataset.notes:
        print(f'Note: {note}.')
    print(f'Wrote {out} and {", ".join(f"{out.stem}_{split}.json" for split in dataset.splits)}.')


def was_prepared(out: Path, data: str) -> bool:
    """Return whether a config was written for a data set."""
    first = out.read_text(errors='replace').partition('\n')[0]
    return first == f'# groupdetr prepare {repr(os.path.abspath(data))[1:-1]}'


def check_out(out: Path, data: str) -> None:
    check_output('--out', out, 'a config', ('.py', ))
    if folder_of(data) in out.resolve().parents:
        raise ConfigError(f'--out {out} is in DATA {data}, which prepare never changes: name a '
                          'file elsewhere, or work in another folder.')
    if out.exists():
        raise ConfigError(f'--out {out} exists: name another file, or remove it.')


def describe(classes: List[str], images: List[LabeledImage]) -> List[Tuple[str, str]]:
    """Return the rows of the table for a split."""
    boxes = [box for image in images for box in image.boxes]
    counts = Counter(box.name for box in boxes)
    areas = [(x.xyxy[2] - x.xyxy[0]) * (x.xyxy[3] - x.xyxy[1]) for x in boxes]
    return [
        ('images', str(len(images))),
        ('  without objects', str(sum(not image.boxes for image in images))),
        ('  width', spread([image.width for image in images])),
        ('  height', spread([image.height for image in images])),
        ('objects', str(len(boxes))), *((f'  {name}', str(counts[name])) for name in classes),
        ('objects in an image', spread([len(image.boxes) for image in images])),
        ('small, medium, large', ', '.join(map(str, np.histogram(areas, AREAS)[0])))]


def spread(values: List[int]) -> str:
    """Return least, most and median of some values as a text."""
    low, middle, high = min(values), int(np.median(values)), max(values)
    return str(low) if low == high else f'{low} to {high}, median {middle}'


def main(args: argparse.Namespace) -> None:
    out = Path(args.out) if args.out else default_out(args.data)
    prepare(args, args.data, out)
    if get_device() == 'cpu' and args.model != 'small':
        print('No GPU was found, and a ResNet-50 is slow on a CPU: use --model small.')
    print(f'Next: groupdetr train {quote(str(out))}')
