"""Pascal VOC: an XML for each image; ``ImageSets`` may say the splits, or folders, or nothing."""
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Dict, List, Optional

from ...errors import ConfigError
from .common import (Dataset, LabeledBox, LabeledImage, Source, check_size, read_text,
                     to_number)

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def find(source: Source) -> List[Path]:
    """Find XML files of annotations, anywhere in the folder."""
    if source.only:
        return []
    return [file for file in sorted(source.root.rglob('*.xml')) if has_annotation(file)]



def has_annotation(file: Path) -> bool:
    """Whether an XML file looks like labels, by its first bytes."""
    with file.open('rb') as start:
        return b'<annotation' in start.read(1 << 12)


def read(source: Source, files: List[Path]) -> Dataset:
    """Read all files; the classes are those that occur, in the order of the alphabet."""
    by_split = split_files(source, files)
    splits = {split: source.read(group, lambda file: read_image(source, file))
              for split, group in by_split.items()}
    names = {box.name for images in splits.values() for image in images for box in image.boxes}
    known = {file.stem for file in files}
    for stem in sorted(source.by_stem.keys() - known):
        source.note('images without XML, left out', source.by_stem[stem][0])
    kind = 'with ImageSets' if find_image_sets(files) else 'as labelImg writes it'
    return Dataset(f'Pascal VOC, {kind}', sorted(names), splits, source.notes)


def find_image_sets(files: List[Path]) -> Optional[Path]:
    """The folder of lists of images, beside that of the annotations."""
    folder = files[0].parents[1] / 'ImageSets/Main'
    return folder if any(folder.glob('t*.txt')) else None


def split_files(source: Source, files: List[Path]) -> Dict[str, List[Path]]:
    """Tell the splits by ``ImageSets``, or by the names of folders.

    Raises:
        ConfigError: If a list names an image that has no XML.
    """
    folder = find_image_sets(files)
    if folder is None:
        by_split = {}
        for file in files:
            by_split.setdefault(source.split_of(file.parent) or 'train', []).append(file)
        return by_split
    names = dict(train='train', val='val', test='test')
    if not (folder / 'train.txt').is_file():
        names.update(train='trainval')
    return {split: listed_files(folder / f'{name}.txt', files[0].parent)
            for split, name in names.items() if (folder / f'{name}.txt').is_file()}


def listed_files(image_set: Path, annotations: Path) -> List[Path]:
    """The XML files of the images that a list names.

    Raises:
        ConfigError: If one does not exist.
    """
    files = [annotations / f'{line.split()[0]}.xml'
             for line in read_text(image_set).splitlines() if line.strip()]
    for file in files:
        if not file.is_file():
            raise ConfigError(f'{file} does not exist, and {image_set} names it: put it there, or '
                              'take its line out.')
    return files


def read_image(source: Source, file: Path) -> Optional[LabeledImage]:
    """Read an XML, and the size of its image; the image's suffix is that of the real file.

    Raises:
        ConfigError: If the XML is cut short, or a box has a fault.
    """
    try:
        root = ET.fromstring(read_text(file))
    except ET.ParseError as error:
        raise ConfigError(f'{file} is not valid XML ({error}): put the whole file there.') from (
            error)
    path = (source.find_image(f'{file.stem}.jpg', file.parent, source.split_of(file)) or
            source.find_image(root.findtext('filename') or '', file.parent, None))
    if path is None or not path.is_file():
        source.note('label files without image, left out', file)
        return None
    size = source.size(path)
    if size is None:
        return None
    declared = tuple(int(to_number(root.findtext(f'size/{x}') or '0', file))
                     for x in ('width', 'height'))
    if all(declared):
        check_size(declared, size, path, file)
    boxes = [read_box(entry, file) for entry in root.iter('object')]
    return LabeledImage(path, *size, source.boxes(boxes, size, file))


def read_box(entry: ET.Element, file: Path) -> LabeledBox:
    """Read an ``object``; its edges are those that the XML says.

    Raises:
        ConfigError: If it has no name or no box.
    """
    name = (entry.findtext('name') or '').strip()
    if not name:
        raise ConfigError(f'{file} has an object without a name: add it.')
    if entry.find('bndbox') is None:
        raise ConfigError(f'{file} has an object {name} without bndbox: add it.')
    return LabeledBox(name, tuple(to_number(entry.findtext(f'bndbox/{x}'), file)
                                  for x in CORNERS))
