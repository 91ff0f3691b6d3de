"""Pascal VOC: an XML for each image; ``ImageSets`` may say the splits, or folders, or nothing."""
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Optional

from ...errors import ConfigError
from .common import (SPLITS, Dataset, LabeledBox, LabeledImage, Source, comparable, has_pattern,
                     read_text, to_number)

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def find(source: Source) -> List[Path]:
    """Find XML files of annotations, anywhere in the folder; a file that is named means all."""
    if source.only and source.only.suffix.lower() != '.xml':
        return []
    return [file for file in source.files
            if file.suffix.lower() == '.xml' and has_pattern(file, rb'<annotation[\s>]', 1 << 12)]


def read(source: Source, files: List[Path]) -> Dataset:
    """Read all files; the classes are those that occur, in the order of the alphabet."""
    by_split = split_files(source, files)
    splits = {split: source.read(group, lambda file: read_image(source, file))
              for split, group in by_split.items()}
    read = [image for images in splits.values() for image in images]
    names = {box.name for image in read for box in image.boxes}
    known = {comparable(x.stem) for x in (*files, *(image.path for image in read))}
    for stem in sorted(source.by_stem.keys() - known):
        source.note('images without XML, left out', source.by_stem[stem][0])
    for file in sorted({*files} - {file for group in by_split.values() for file in group}):
        source.note('XML files that no list of ImageSets names, left out', file)
    kind = 'with ImageSets' if find_lists(files[0].parent) else 'as labelImg writes it'
    return Dataset(f'Pascal VOC, {kind}', sorted(names), splits, source.notes)


def split_files(source: Source, files: List[Path]) -> Dict[str, List[Path]]:
    """Tell the splits by the ``ImageSets`` beside a folder, or by the names of folders."""
    by_split = defaultdict(list)
    for folder in sorted({file.parent for file in files}):
        lists = find_lists(folder)
        for split, image_set in lists.items():
            by_split[split] += listed_files(image_set, folder)
        if not lists:
            by_split[source.split_of(folder) or 'train'] += [
                file for file in files if file.parent == folder]
    return by_split


def find_lists(annotations: Path) -> Dict[str, Path]:
    """The list of images of each split, in ``ImageSets`` beside the folder of the XML files."""
    folder = annotations.parent / 'ImageSets'
    lists = {file.stem.lower(): file for pattern in ('*.txt', 'Main/*.txt')
             for file in folder.glob(pattern)}
    return {split: lists[name] for name, split in dict(trainval='train', **SPLITS).items()
            if name in lists}


def listed_files(image_set: Path, annotations: Path) -> List[Path]:
    """The XML files of the images that a list names, where a number may follow the name."""
    files = []
    for line in filter(None, map(str.strip, read_text(image_set).splitlines())):
        names = line, re.sub(r'\s+-?\d+$', '', line), Path(line).stem
        file = next((x for x in (annotations / f'{name}.xml' for name in names) if x.is_file()),
                    None)
        if file is None:
            raise ConfigError(f'{annotations / names[1]}.xml does not exist, and {image_set} '
                              'names it: put it there, or take its line out.')
        files.append(file)
    return files


def read_image(source: Source, file: Path) -> Optional[LabeledImage]:
    """Read an XML, and the size of its image; the image's suffix is that of the real file."""
    try:
        root = ET.fromstring(file.read_bytes())  # which says its encoding
    except (ET.ParseError, LookupError, OSError, ValueError) as error:
        raise ConfigError(f'{file} is not valid XML ({error}): put the whole file there, in '
                          'UTF-8.') from error
    split = source.split_of(file.parent)
    name = (root.findtext('filename') or '').strip()
    path = (source.find_image(f'{file.stem}{Path(name).suffix or ".jpg"}', file.parent, split) or
            source.find_image(name, file.parent, split))
    if path is None:
        source.note('label files without image, left out', file)
        return None
    return source.labeled_image(
        path, ((read_box(source, entry, file), file) for entry in root.iter('object')), file,
        [root.findtext('size/width'), root.findtext('size/height')])


def read_box(source: Source, entry: ET.Element, file: Path) -> LabeledBox:
    """Read an ``object`` with a name and a box, whose edges are those that the XML says.

    One that is ``difficult`` becomes a crowd: neither trained nor scored, as Pascal VOC does.
    """
    name = (entry.findtext('name') or '').strip()
    if not name:
        raise ConfigError(f'{file} has an object without a name: add it.')
    if entry.find('bndbox') is None:
        raise ConfigError(f'{file} has an object {name} without bndbox: add it.')
    difficult = (entry.findtext('difficult') or '').strip() == '1'
    if difficult:
        source.note('objects that are marked difficult, neither trained nor scored', file)
    return LabeledBox(name, tuple(to_number(entry.findtext(f'bndbox/{x}'), file)
                                  for x in CORNERS), difficult)
