"""Write the annotations of a data set in Pascal VOC format as COCO's, one file for each split.
``prepare`` does this and more for a training."""
import argparse
import json
from pathlib import Path

from ..errors import ConfigError
from ..io import write_atomically
from ..data.layouts import Dataset, to_coco, voc
from ..data.layouts.common import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('voc', type=Path,
                        help='folder of Annotations/*.xml, ImageSets/Main/*.txt and JPEGImages')
    parser.add_argument('out', type=Path, help='folder that gets SPLIT.json of each split')
    parser.add_argument('--classes', nargs='+', required=True,
                        help='names of the classes; objects of others are left out')
    parser.add_argument('--splits', nargs='+', default=['train', 'val'],
                        help='names of files in ImageSets/Main (default: train val)')


def main(args: argparse.Namespace) -> None:
    source, splits = Source(args.voc), {}
    annotations = args.voc / 'Annotations'
    for split in args.splits:
        image_set = args.voc / 'ImageSets/Main' / f'{split}.txt'
        if not image_set.is_file():
            raise ConfigError(f'{image_set} does not exist; the first argument has to be the '
                              'folder that holds Annotations, ImageSets and JPEGImages.')
        splits[split] = source.read(voc.listed_files(image_set, annotations),
                                    lambda file: voc.read_image(source, file))
        if not any(box.name in args.classes for image in splits[split] for box in image.boxes):
            names = ', '.join(args.classes)
            raise ConfigError(f'--classes: no object of {annotations} is one of {names}; give the '
                              'names that its XML files have.')
    root = Dataset('Pascal VOC', args.classes, splits).root
    for split, images in splits.items():
        coco = to_coco(images, args.classes, root)
        path = args.out / f'{split}.json'
        write_atomically(path, json.dumps(coco).encode())
        print(f'Wrote {path}: {len(coco["images"])} images, {len(coco["annotations"])} objects')
    print(*(f'Note: {note}.' for note in source.notes), sep='\n')
