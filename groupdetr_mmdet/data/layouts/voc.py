"""Pascal VOC: an XML for each image; ``ImageSets`` may say the splits, or folders, or nothing."""
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Tuple

from .common import (SPLITS, Dataset, LabelError, LabeledBox, LabeledImage, Labels, Source,
                     comparable, has_pattern, read_text, to_number)

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
    splits = {split: [image for folder in sorted({file.parent for file in group})
                      for image in read_folder(source, [x for x in group if x.parent == folder])]
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
            by_split[split] += listed_files(source, image_set, folder, split)
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


def listed_files(source: Source, image_set: Path, annotations: Path, split: str) -> List[Path]:
    """The XML files of the images that a list names, where a number may follow the name."""
    files = []
    for line in filter(None, map(str.strip, read_text(image_set).splitlines())):
        names = line, re.sub(r'\s+-?\d+$', '', line), Path(line).stem
        file = next((x for x in (annotations / f'{name}.xml' for name in names) if x.is_file()),
                    None)
        if file is not None:
            files.append(file)
        elif split == 'test':  # as that of the challenge, whose labels nobody has
            source.note('images of a test set without XML, left out', f'{line} of {image_set}')
        else:
            source.faults['listed'].append(LabelError('listed', (
                f'{annotations / names[1]}.xml does not exist, and {image_set} names it')))
    return files


def read_folder(source: Source, files: List[Path]) -> List[LabeledImage]:
    """Read the XML files of a folder; the suffix of an image is that of the real file."""
    parsed = []
    for file in files:
        try:
            parsed.append((file, ET.fromstring(file.read_bytes())))  # which says its encoding
        except (ET.ParseError, LookupError, OSError, ValueError) as error:
            source.faults['xml'].append(LabelError('xml', (
                f'{file} is not valid XML ({error}), or not in UTF-8')))
    names = []
    for file, root in parsed:
        name = (root.findtext('filename') or '').strip()
        own = f'{file.stem}{Path(name).suffix or ".jpg"}'
        names.append([own, name] if name else [own])
    folder = files[0].parent
    paths = source.find_images(names, folder, source.split_of(folder))
    return source.read(parsed, paths, read_labels, 'label files without image, left out')


def read_labels(parsed: Tuple[Path, ET.Element]) -> Labels:
    """Read the size and the objects of a parsed XML."""
    file, root = parsed
    return Labels(file, ((read_box(entry, file), file) for entry in root.iter('object')),
                  [root.findtext('size/width'), root.findtext('size/height')])


def read_box(entry: ET.Element, file: Path) -> LabeledBox:
    """Read an ``object`` with a name and a box, whose edges are those that the XML says.

    One that is ``difficult`` becomes a crowd: neither trained nor scored, as Pascal VOC does.
    """
    name = (entry.findtext('name') or '').strip()
    if not name or entry.find('bndbox') is None:
        raise LabelError('object', f'{file} has an object {name} without '
                         f'{"bndbox" if name else "name"}')
    difficult = (entry.findtext('difficult') or '').strip() == '1'
    return LabeledBox(name, tuple(to_number(entry.findtext(f'bndbox/{x}'), file)
                                  for x in CORNERS), difficult)
