"""Read folders of images and labels in the layouts of COCO, YOLO and Pascal VOC.

Each layout is a module with ``find``, which returns its files in a folder, and ``read``.
"""
from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional, Union

from mmdet.apis.det_inferencer import IMG_EXTENSIONS

from ...errors import ConfigError
from . import coco, foreign, voc, yolo
from .common import Dataset, LabeledImage, Source, has_objects, has_pattern, to_coco

__all__ = ['Dataset', 'LabeledImage', 'has_objects', 'is_data', 'read_dataset', 'to_coco']

LAYOUTS = (coco, yolo, voc)


def read_dataset(path: Union[str, Path],
                 files: Optional[Dict[str, List[str]]] = None) -> Dataset:
    """Read a data set from a folder, or from a label file.

    Args:
        path (str | Path): The folder or label file.
        files (dict[str, list[str]], optional): Label files of 'train', 'val' and 'test', for
            images in ``path``. Defaults to the files in the folder.

    Raises:
        ConfigError: If there are no labels, or wrong labels.
    """
    if files:
        dataset = Dataset('', [], {})
        for split, names in files.items():
            parts = [read_source(Source(Path(name), Path(path)), name) for name in names]
            dataset.layout = parts[0].layout
            dataset.classes += [x for part in parts for x in part.classes]
            dataset.splits[split] = [x for part in parts for y in part.splits.values() for x in y]
            dataset.notes += [x for part in parts for x in part.notes]
        dataset.classes = list(dict.fromkeys(dataset.classes))
    else:
        dataset = read_source(Source(Path(path)), path)
        if len(dataset.splits) == 1 and 'train' not in dataset.splits:
            split, images = dataset.splits.popitem()
            dataset.splits = dict(train=images)
            dataset.notes.append(f'{split} is the only split, and is used for training')
    check_usable(dataset, path)
    return dataset


def read_source(source: Source, path: Union[str, Path]) -> Dataset:
    """Read a folder or file, with the reader of its layout; ``path`` is for messages."""
    found = {layout: files for layout in LAYOUTS if (files := layout.find(source))}
    if not found:
        if advice := foreign.advice(source):
            raise ConfigError(f'DATA {path} has labels of the format {advice}.')
        if not source.images:
            raise ConfigError(f'DATA {path} has no images, which end in '
                              f'{", ".join(IMG_EXTENSIONS)}: add them, and unpack archives.')
        raise ConfigError(
            f'DATA {path} has no labels: add a data.yaml or classes.txt with names and labels of '
            'the images (YOLO), a JSON with images, annotations and categories (COCO), or an XML '
            'for each image (Pascal VOC), and unpack archives; docs/own-data.md converts other '
            'formats.')
    if len(found) > 1:
        names = ' and '.join(str(files[0]) for files in found.values())
        raise ConfigError(f'DATA {path} has labels of several kinds, {names}: name the file that '
                          'counts in the place of the folder.')
    (layout, files), = found.items()
    dataset = layout.read(source, files)
    source.check_faults()
    return dataset


def is_data(path: Union[str, Path]) -> bool:
    """Return whether a path is a folder or a label file, and not a config."""
    path = Path(path)
    if not path.is_file() or path.suffix == '.py':
        return path.is_dir()
    if path.suffix in ('.yaml', '.yml'):
        return yolo.names_classes(path)
    return path.suffix != '.json' or has_pattern(path, coco.COCO_START, -1)


def check_usable(dataset: Dataset, path: Union[str, Path]) -> None:
    """Raise a ConfigError without objects to train on; remove splits without objects."""
    if names := [name for name in dataset.classes if dataset.classes.count(name) > 1]:
        raise ConfigError(f'DATA {path} has two classes of the name {names[0]}: rename one.')
    count = Counter(image.path for images in dataset.splits.values() for image in images)
    if repeated := [path for path in count if count[path] > 1]:
        dataset.notes.append(f'images that occur twice, in a split or in two: {len(repeated)}, '
                             f'first {repeated[0]}')
    if not has_objects(dataset.splits.get('train', ())):
        what = 'image with an object' if dataset.splits.get('train') else 'image'
        raise ConfigError(
            f'DATA {path} has no {what} to train on'
            f'{"".join(f" ({note})" for note in dataset.notes)}: correct its labels, of the '
            f'layout {dataset.layout}; images end in {", ".join(IMG_EXTENSIONS)}.')
    for split in ('val', 'test'):
        if split in dataset.splits and not has_objects(dataset.splits[split]):
            dataset.notes.append(f'{split} has no objects to find, and is left out')
            del dataset.splits[split]
