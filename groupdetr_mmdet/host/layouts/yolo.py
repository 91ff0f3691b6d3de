"""YOLO: a ``data.yaml`` that names classes and folders, and a text file for each image."""
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import yaml
from mmdet.apis.det_inferencer import IMG_EXTENSIONS

from ...errors import ConfigError
from .common import Dataset, LabeledBox, LabeledImage, Source, read_text, to_number

TOLERANCE = 0.01  # of rounding beyond the edge of an image, in parts of it


def find(source: Source) -> List[Path]:
    """Find YAML files that name classes and images."""
    return [file for file in source.label_files('*.yaml', '*.yml')
            if 'names' in (config := load(file)) and 'train' in config]


def load(file: Path) -> Dict[str, Any]:
    """Read ``data.yaml``; empty if it is not a dictionary."""
    try:
        config = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f'{file} is not valid YAML ({reason}): correct it.') from error
    return config if isinstance(config, dict) else {}


def read(source: Source, files: List[Path]) -> Dataset:
    """Read what the first file names; labels lie as YOLO looks for them."""
    file, config = files[0], load(files[0])
    names = class_names(file, config['names'])
    splits, labels = {}, set()
    for split in ('train', 'val', 'test'):
        entry = config.get(split) or (split == 'val' and config.get('valid'))
        paths = entry and locate_all(source, file, config, split, entry)
        if paths:
            labels.update(map(label_file, paths))
            splits[split] = source.read(paths, lambda path: read_image(source, path, names))
    for folder in {label.parent for label in labels}:
        for label in sorted(set(folder.glob('*.txt')) - labels):
            if label.name != 'classes.txt':
                source.note('label files without image, left out', label)
    return Dataset(f'YOLO, {file.name}', names, splits, source.notes)


def class_names(file: Path, names: Any) -> List[str]:
    """Names in the order of their numbers.

    Raises:
        ConfigError: If they are neither a list nor numbered from 0.
    """
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ConfigError(f'{file}: names must be numbered from 0 without a gap, and are '
                              f'{", ".join(map(str, sorted(names, key=str)))}.')
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise ConfigError(f'{file}: names={names!r} must be a list of the names of classes.')
    return [str(name) for name in names]


def locate_all(source: Source, file: Path, config: dict, split: str, entry: Any) -> List[Path]:
    """Find the images of a split.

    Raises:
        ConfigError: If the training images are not where the file says. Other splits are optional:
            many files name a test set that was never there.
    """
    images = []
    for part in entry if isinstance(entry, list) else [entry]:
        place = locate(file, str(config.get('path') or ''), str(part))
        if place is None and split == 'train':
            raise ConfigError(f'{file}: {split} names {part}, which does not exist: correct it.')
        if place is None:
            source.note('folders that are not there', f'{split}: {part}')
        elif place.suffix == '.txt':
            images += [place.parent / line.strip() for line in read_text(place).splitlines()
                       if line.strip()]
        else:
            images += sorted(x for x in place.rglob('*') if x.suffix.lower() in IMG_EXTENSIONS)
    return images


def locate(file: Path, path: str, entry: str) -> Optional[Path]:
    """Find a folder or list of images; Roboflow writes ``../train`` for the ``train`` beside."""
    inside = Path(*(part for part in Path(entry).parts if part != '..'))
    for place in (file.parent / inside, file.parent / path / entry, Path(path) / entry,
                  file.parent / entry):
        if place.exists():
            return Path(os.path.abspath(place))
    return None


def label_file(image: Path) -> Path:
    """Where YOLO looks for the labels of an image: ``labels`` for the last folder ``images``."""
    parts = list(image.with_suffix('.txt').parts)
    if 'images' in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index('images')] = 'labels'
        if Path(*parts).parent.is_dir():
            return Path(*parts)
    return image.with_suffix('.txt')


def read_image(source: Source, path: Path, names: List[str]) -> Optional[LabeledImage]:
    """Read an image's size and labels; one without a label file is background."""
    size = source.size(path)
    if size is None:
        return None
    label, boxes = label_file(path), []
    lines = read_text(label).splitlines() if label.is_file() else []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f'{label} line {number}'
            boxes += source.boxes([read_line(line.split(), names, size, where)], size, where)
    return LabeledImage(path, *size, boxes)


def read_line(words: List[str], names: List[str], size: Tuple[int, int],
              where: str) -> LabeledBox:
    """Read ``class x y width height``, or the corners of a polygon, in parts of the image.

    Raises:
        ConfigError: If it is neither.
    """
    label, *values = (to_number(word, where) for word in words)
    if label not in range(len(names)):
        raise ConfigError(f'{where} has the class {words[0]}, and the classes are numbered 0 to '
                          f'{len(names) - 1}: correct it, or add its name.')
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ConfigError(f'{where} has {len(values) + 1} numbers, and a box has 5, class, x, y, '
                          'width and height, in parts of the image: correct it.')
    if not all(-TOLERANCE <= x <= 1 + TOLERANCE for x in values):
        raise ConfigError(f'{where} has numbers beyond 0 to 1, {" ".join(words[1:5])}, and they '
                          'are parts of the width and height of the image: correct it.')
    if len(values) == 4:
        x, y, width, height = values
        corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        corners = (*map(min, (values[::2], values[1::2])), *map(max, (values[::2], values[1::2])))
    return LabeledBox(names[int(label)], tuple(x * n for x, n in zip(corners, size * 2)))
