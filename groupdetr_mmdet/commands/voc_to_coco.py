"""Write the annotations of a data set in Pascal VOC format as COCO's, one file for each split."""
import argparse
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import List

from ..errors import ConfigError
from ..host.files import write_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('voc', type=Path,
                        help='folder of Annotations/*.xml and ImageSets/Main/*.txt')
    parser.add_argument('out', type=Path, help='folder that gets SPLIT.json of each split')
    parser.add_argument('--classes', nargs='+', required=True,
                        help='names of the classes; objects of others are left out')
    parser.add_argument('--splits', nargs='+', default=['train', 'val'],
                        help='names of files in ImageSets/Main (default: train val)')


def read_split(voc: Path, split: str, classes: List[str]) -> dict:
    """Read one split of a data set in Pascal VOC format.

    Args:
        voc (Path): Folder of the data set.
        split (str): Name of a file in ``ImageSets/Main``.
        classes (list[str]): Names of the classes, numbered from 1.

    Returns:
        dict: The same in COCO format; boxes are xywh in pixels, edges as the XML says them.

    Raises:
        ConfigError: If a file is missing or no object has one of the classes.
    """
    names = read_text(voc / 'ImageSets/Main' / f'{split}.txt').split()
    coco = dict(images=[], annotations=[],
                categories=[dict(id=i, name=name) for i, name in enumerate(classes, 1)])
    for image_id, name in enumerate(names, 1):
        root = ET.fromstring(read_text(voc / 'Annotations' / f'{name}.xml'))
        width, height = (int(root.findtext(f'size/{x}')) for x in ('width', 'height'))
        coco['images'].append(
            dict(id=image_id, file_name=f'{name}.jpg', width=width, height=height))
        for entry in root.iter('object'):
            if entry.findtext('name') in classes:
                coco['annotations'].append(
                    dict(annotation(entry, classes), id=len(coco['annotations']) + 1,
                         image_id=image_id))
    if not coco['annotations']:
        raise ConfigError(f'--classes: no object of {voc / "Annotations"} is one of '
                          f'{", ".join(classes)}; give the names that its XML files have.')
    return coco


def read_text(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f'{path} does not exist; the first argument has to be the folder that '
                          'holds Annotations, ImageSets and JPEGImages.')
    return path.read_text()


def annotation(entry: ET.Element, classes: List[str]) -> dict:
    """COCO annotation of an ``object`` element."""
    left, top, right, bottom = (
        float(entry.findtext(f'bndbox/{x}')) for x in ('xmin', 'ymin', 'xmax', 'ymax'))
    width, height = right - left, bottom - top
    return dict(category_id=classes.index(entry.findtext('name')) + 1, iscrowd=0,
                bbox=[left, top, width, height], area=width * height)


def main(args: argparse.Namespace) -> None:
    splits = {split: read_split(args.voc, split, args.classes) for split in args.splits}
    for split, coco in splits.items():
        path = args.out / f'{split}.json'
        write_atomically(path, json.dumps(coco).encode())
        print(f'Wrote {path}: {len(coco["images"])} images, {len(coco["annotations"])} objects')
