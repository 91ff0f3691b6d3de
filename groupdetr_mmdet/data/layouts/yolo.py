"""YOLO: a text file for each image, and a file with the names of the classes.

That file is ``data.yaml``, which may also name the images of each split, ``classes.txt``,
``obj.names`` or Roboflow's ``_darknet.labels``.
"""
import os
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import yaml

from ...errors import ConfigError
from .common import (Dataset, LabelError, LabeledBox, Labels, Source, has_pattern, is_image,
                     read_lines, read_text, to_number, visible_files)

CLASS_LISTS = 'classes.txt', '*.names', '_darknet.labels'
SPLITS = 'train', 'val', 'test'
TOLERANCE = 0.01  # most rounding of a box beyond the edge, relative to the image's size
OUTSIDE = 1.  # most distance of a polygon's corner beyond the edge


def find(source: Source) -> List[Path]:
    """Return the files that name the classes of YOLO labels."""
    named = list(filter(names_classes, source.label_files('*.yaml', '*.yml')))
    if named or not any(label_file(image).is_file() for image in source.images):
        return named
    return source.label_files(*CLASS_LISTS)


def names_classes(file: Path) -> bool:
    """Return whether a YAML file, valid or not, has the key of class names."""
    return has_pattern(file, rb'^[^\w\s#]*(names|nc)\s*:')


def load(file: Path) -> Dict[str, Any]:
    """Read a file that names the classes, with values as texts: a class may be 'no'."""
    if file.suffix.lower() not in ('.yaml', '.yml'):
        return dict(names=read_lines(file))
    try:
        config = yaml.load(read_text(file), yaml.BaseLoader)
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f'{file} is not valid YAML ({reason}): correct it.') from error
    return config if isinstance(config, dict) else {}


def read(source: Source, files: List[Path]) -> Dataset:
    """Read the data set of a file, or of several files with the same content."""
    files = [x for x in files if any(map(load(x).get, SPLITS))] or files  # no file of a model
    file, config = files[0], load(files[0])
    for other in files[1:]:
        named = other.parent != file.parent and any(config.get(x) for x in SPLITS)
        if named or load(other) != config:
            raise ConfigError(f'DATA {source.root} has {file} and {other}: name the right '
                              'file instead of the folder.')
    names = class_names(file, config)
    by_split = {split: find_images(source, file, config, split) for split in SPLITS}
    splits = {split: source.read([
        Labels(path, label_file(path), read_labels(source, path, names, config))
        for path in paths], relative=True)
        for split, paths in by_split.items() if paths or split == 'train' and config.get(split)}
    images = [path for paths in by_split.values() for path in paths]
    labels = {*source.label_files(*CLASS_LISTS), *map(label_file, images)}
    folders = {label.parent for label in map(label_file, images)} - {x.parent for x in images}
    for label in source.files:
        if label.suffix == '.txt' and label.parent in folders and label not in labels:
            source.note('label files without image, left out', label)
    return Dataset(f'YOLO, {file.name}', names, splits, source.notes())


def class_names(file: Path, config: Dict[str, Any]) -> List[str]:
    """Return the class names in the order of their numbers, from 0, else ``class_0``, ...

    Raises:
        ConfigError: If names are not numbered from 0, or ``nc`` is another number.
    """
    nc = str(config.get('nc'))
    names = config.get('names', nc)
    if names == nc and nc.isdecimal():
        names = [f'class_{i}' for i in range(int(nc))]
    if isinstance(names, dict):
        try:
            names = [names[str(i)] for i in range(len(names))]
        except KeyError as error:
            raise ConfigError(f'{file}: names must be numbered from 0 without a gap, and {error} '
                              'is missing.') from error
    if not isinstance(names, list) or not names or not all(isinstance(x, str) for x in names):
        raise ConfigError(f'{file}: names={names!r:.60} must be a list of the names of classes.')
    if nc.isdecimal() and int(nc) != len(names):
        raise ConfigError(f'{file}: nc is {nc}, and names has {len(names)} names: correct one.')
    return names


def find_images(source: Source, file: Path, config: Dict[str, Any], split: str) -> List[Path]:
    """Find the images of a split: as the file names them, else by the names of folders."""
    if not any(config.get(x) for x in SPLITS):
        return [x for x in source.images if (source.split_of(x.parent) or 'train') == split]
    entry = config.get(split) or (split == 'val' and config.get('valid')) or []
    images = []
    for part in entry if isinstance(entry, list) else [entry]:
        place = locate(source, file, str(config.get('path') or ''), str(part))
        if place is None and split == 'train':
            raise ConfigError(f'{file}: {split} names {part}, which does not exist: correct it.')
        if place is None:  # many files name a test set that does not exist
            source.note('missing folders', f'{split}: {part}')
        elif place.is_file():
            lines = read_lines(place)
            found = source.find_images([[line] for line in lines], place.parent, split)
            images += filter(None, found)
            for line in (line for line, image in zip(lines, found) if image is None):
                source.note('missing images, left out', f'{line} of {place}')
        else:
            found = sorted(filter(is_image, visible_files(place)))
            images += found
            if not found:
                source.note('folders without an image', f'{split}: {part}')
    return images


def locate(source: Source, file: Path, path: str, entry: str) -> Optional[Path]:
    """Find a folder or list of images, also by the path of another machine.

    The last two folders of the path count, or the last folder if it names the split. Roboflow
    writes ``../train/images`` for ``train/images`` beside the file.
    """
    parts = [part for part in Path(entry.replace('\\', '/')).parts if part not in ('..', os.sep)]
    ends = [parts[i:] for i in range(max(1, len(parts) - 1))]
    ends += [parts[-1:]] if parts and source.split_of(Path(parts[-1])) else []
    folders = file.parent / path, file.parent
    exact = [folder / entry for folder in (*folders, Path(path))]
    places = [folder.joinpath(*end) for end in ends for folder in folders]
    places = exact + places if Path(entry).is_absolute() else places + exact
    return next((Path(os.path.abspath(x)) for x in places if x.exists()), None)


def label_file(image: Path) -> Path:
    """Return an image's label file: beside it, or in ``labels`` instead of ``images``.

    Darknet also writes ``labels`` beside Pascal VOC's ``JPEGImages``.
    """
    places = [place for beside in (image.with_suffix(x).as_posix() for x in ('.txt', '.TXT'))
              for place in (beside, *(re.sub('(?i)(.*/)(jpeg)?images/', rf'\g<1>{x}/', beside)
                                      for x in ('labels', 'Labels', 'LABELS')))]
    return Path(next(filter(os.path.isfile, places), places[1]))


def read_labels(source: Source, path: Path, names: List[str],
                config: Dict[str, Any]) -> Iterator[LabeledBox]:
    """Yield an image's objects; none without a label file."""
    label = label_file(path)
    if not label.is_file():
        source.note('images without a label file, taken as background',
                    f'{path}, whose labels would be {label}')
        return
    for number, line in enumerate(read_text(label).splitlines(), 1):
        if words := line.split():
            where = f'{label} line {number}'
            values = [to_number(word, where) for word in words]
            if 'kpt_shape' in config or has_key_points(values[1:]):
                values = values[:5]
                source.note('objects with key points, of which the box is used', where)
            yield read_line(values, names, where)


def has_key_points(values: List[float]) -> bool:
    """Return whether ``values`` are a box and key points in it: x, y, visibility."""
    if len(values) < 7 or len(values) % 3 != 1:
        return False
    x, y, width, height = values[:4]
    is_box = all(n > 0 and n / 2 - TOLERANCE <= c <= 1 - n / 2 + TOLERANCE
                 for c, n in ((x, width), (y, height)))
    return is_box and all(
        a == b == v == 0 or v in (0, 1, 2) and abs(a - x) <= width / 2 + TOLERANCE and
        abs(b - y) <= height / 2 + TOLERANCE
        for a, b, v in zip(values[4::3], values[5::3], values[6::3]))


def read_line(words: List[float], names: List[str], where: str) -> LabeledBox:
    """Read ``class x y width height``, or corners of a polygon, relative to the image's size.

    Raises:
        LabelError: If the class or a number is wrong.
    """
    label, *values = words
    beyond = TOLERANCE if len(values) == 4 else OUTSIDE
    if label not in range(len(names)):
        raise LabelError('class', f'{where} has the class {label:g}, and the classes are numbered '
                         f'0 to {len(names) - 1}')
    if len(values) < 4 or len(values) % 2:
        raise LabelError('line', f'{where} has {len(words)} numbers, and a box has 5: class, x, '
                         'y, width and height, as fractions of the image')
    if not all(-beyond <= x <= 1 + beyond for x in values):
        shown = ' '.join(f'{x:g}' for x in values[:4])
        raise LabelError('pixels', f'{where} has numbers beyond 0 to 1, {shown}, which must be '
                         'fractions of the width and height of the image')
    if len(values) == 4:
        x, y, width, height = values
        corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        corners = (*map(min, (values[::2], values[1::2])), *map(max, (values[::2], values[1::2])))
    return LabeledBox(names[int(label)], corners, where)
