"""Write the annotations of a data set in Pascal VOC format as COCO's, one file for each split.
``prepare`` does this and more for a training."""
import argparse
import json
from pathlib import Path
from typing import List

from ..errors import ConfigError
from ..host.files import write_atomically
from ..host.layouts import Dataset, to_coco, voc
from ..host.layouts.common import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('voc', type=Path,
                        help='folder of Annotations/*.xml, ImageSets/Main/*.txt and JPEGImages')
    parser.add_argument('out', type=Path, help='folder that gets SPLIT.json of each split')
    parser.add_argument('--classes', nargs='+', required=True,
                        help='names of the classes; objects of others are left out')
    parser.add_argument('--splits', nargs='+', default=['train', 'val'],
                        help='names of files in ImageSets/Main (default: train val)')


def read_splits(root: Path, splits: List[str], classes: List[str]) -> Dataset:
    """Read splits of a data set in Pascal VOC format, each with an object of the classes."""
    source = Source(root)
    dataset = Dataset('Pascal VOC', classes, {}, [])
    for split in splits:
        image_set = root / 'ImageSets/Main' / f'{split}.txt'
        if not image_set.is_file():
            raise ConfigError(f'{image_set} does not exist; the first argument has to be the '
                              'folder that holds Annotations, ImageSets and JPEGImages.')
        files = voc.listed_files(image_set, root / 'Annotations')
        images = source.read(files, lambda file: voc.read_image(source, file))
        if not any(box.name in classes for image in images for box in image.boxes):
            raise ConfigError(f'--classes: no object of {root / "Annotations"} is one of '
                              f'{", ".join(classes)}; give the names that its XML files have.')
        dataset.splits[split] = images
    dataset.notes += source.notes
    return dataset


def main(args: argparse.Namespace) -> None:
    dataset = read_splits(args.voc, args.splits, args.classes)
    for split, images in dataset.splits.items():
        coco = to_coco(images, args.classes, dataset.root)
        path = args.out / f'{split}.json'
        write_atomically(path, json.dumps(coco).encode())
        print(f'Wrote {path}: {len(coco["images"])} images, {len(coco["annotations"])} objects')
    print(*(f'Note: {note}.' for note in dataset.notes), sep='\n')
