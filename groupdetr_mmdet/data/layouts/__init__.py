"""Folders of images and labels in the layouts that people have, read into one form.

Each layout is a module with ``find``, what of a folder is its own, and ``read``.
"""
from collections import Counter
from pathlib import Path
from typing import Dict, List, Optional, Union

from mmdet.apis.det_inferencer import IMG_EXTENSIONS

from ...errors import ConfigError
from . import coco, voc, yolo
from .common import Dataset, LabeledImage, Source, has_objects, has_pattern, to_coco

__all__ = ['Dataset', 'LabeledImage', 'has_objects', 'is_data', 'read_dataset', 'to_coco']

LAYOUTS = (coco, yolo, voc)
WANTED = ('a data.yaml or classes.txt with names, beside labels of the images (YOLO), a JSON with '
          'images, annotations and categories (COCO), or an XML for each image (Pascal VOC)')


def read_dataset(path: Union[str, Path],
                 files: Optional[Dict[str, List[str]]] = None) -> Dataset:
    """Read a data set.

    Args:
        path (str | Path): A folder whose layout is recognized, or the label file that counts.
        files (dict, optional): Label files of 'train', 'val' and 'test', for images in ``path``,
            in the place of those that are found there.

    Raises:
        ConfigError: If there are no labels, or labels that cannot be right.
    """
    if files:
        dataset = Dataset('', [], {})
        for split, names in files.items():
            parts = [read_source(Source(Path(name), Path(path)), name) for name in names]
            dataset.layout = parts[0].layout
            dataset.classes += [x for part in parts for x in part.classes]
            dataset.splits[split] = [x for part in parts for images in part.splits.values()
                                     for x in images]
            dataset.notes += [x for part in parts for x in part.notes]
        dataset.classes = list(dict.fromkeys(dataset.classes))
    else:
        dataset = read_source(Source(Path(path)), path)
        if len(dataset.splits) == 1:
            dataset.splits = dict(train=dataset.splits.popitem()[1])
    check_usable(dataset, path)
    return dataset


def read_source(source: Source, path: Union[str, Path]) -> Dataset:
    """Read what is found in a folder or file, which messages call ``path``."""
    found = {layout: files for layout in LAYOUTS if (files := layout.find(source))}
    if not found:
        lacks = ('is no file of labels: unpack it if it is an archive, and name a folder with'
                 if source.only else 'has no labels: put into it')
        raise ConfigError(f'DATA {path} {lacks} {WANTED}.')
    if len(found) > 1:
        names = ' and '.join(str(files[0]) for files in found.values())
        raise ConfigError(f'DATA {path} has labels of several kinds, {names}: name the file that '
                          'counts in the place of the folder.')
    (layout, files), = found.items()
    dataset = layout.read(source, files)
    source.check_faults()
    return dataset


def is_data(path: Union[str, Path]) -> bool:
    """Whether a path is a folder or a label file, and not a config."""
    path = Path(path)
    if not path.is_file() or path.suffix == '.py':
        return path.is_dir()
    if path.suffix in ('.yaml', '.yml'):
        return yolo.names_classes(path)
    return path.suffix != '.json' or has_pattern(path, coco.START)


def check_usable(dataset: Dataset, path: Union[str, Path]) -> None:
    """Check that something can be learned, and leave out what nothing can be scored on."""
    names = [name for name in dataset.classes if dataset.classes.count(name) > 1]
    if names:
        raise ConfigError(f'DATA {path} has two classes of the name {names[0]}: rename one.')
    shared = Counter(image.path for images in dataset.splits.values() for image in images)
    repeated = [path for path, count in shared.items() if count > 1]
    if repeated:
        dataset.notes.append(f'images that occur twice, in a split or in two: {len(repeated)}, '
                             f'first {repeated[0]}')
    notes = ''.join(f' ({note})' for note in dataset.notes)
    if not dataset.splits.get('train'):
        raise ConfigError(f'DATA {path} has no image to train on{notes}: let images be '
                          f'{", ".join(IMG_EXTENSIONS)}, and call their folders train and val.')
    if not has_objects(dataset.splits['train']):
        raise ConfigError(f'DATA {path} has no image with an object to train on{notes}: correct '
                          f'its labels, of the layout {dataset.layout}.')
    for split in ('val', 'test'):
        if split in dataset.splits and not has_objects(dataset.splits[split]):
            dataset.notes.append(f'{split} has no objects to find, and is left out')
            del dataset.splits[split]
