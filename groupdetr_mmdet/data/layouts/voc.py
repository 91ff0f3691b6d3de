"""Pascal VOC: an XML for each image; splits by ``ImageSets`` or folders."""
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Dict, List

from .common import (SPLITS, Dataset, LabelError, LabeledBox, LabeledImage, Labels, Source,
                     comparable, has_pattern, read_lines, to_number)


def find(source: Source) -> List[Path]:
    """Find XML files of annotations anywhere in the folder; the source may be an XML file."""
    if source.only and source.only.suffix.lower() != '.xml':
        return []
    return [file for file in source.files
            if file.suffix.lower() == '.xml' and has_pattern(file, rb'<annotation[\s>]', 1 << 12)]


def read(source: Source, files: List[Path]) -> Dataset:
    """Read all files; classes are the names in the labels, in alphabetical order."""
    by_split, images = split_files(source, files), defaultdict(list)
    for split, group in by_split.items():
        for folder in sorted({file.parent for file in group}):
            images[split] += read_folder(source, folder, [x for x in group if x.parent == folder])
    read = [image for of_split in images.values() for image in of_split]
    known = {comparable(x.stem) for x in (*files, *(image.path for image in read))}
    for stem in sorted(source.by_stem.keys() - known):
        source.note('images without XML, left out', source.by_stem[stem][0])
    for file in sorted({*files}.difference(*by_split.values())):
        source.note('XML files that no list of ImageSets names, left out', file)
    return Dataset('Pascal VOC', sorted({box.name for x in read for box in x.boxes}),
                   dict(images), source.notes())


def split_files(source: Source, files: List[Path]) -> Dict[str, List[Path]]:
    """Group files by split, from ``ImageSets`` beside a folder, or from names of folders."""
    by_split, by_folder = defaultdict(list), defaultdict(list)
    for file in files:  # group by the folder beside ImageSets, or the file's folder
        around = [x for x in file.parents if source.root in (x.parent, *x.parent.parents)]
        by_folder[next(filter(find_lists, around), file.parent)].append(file)
    for folder, inside in sorted(by_folder.items()):
        lists = find_lists(folder)
        for split, image_set in lists.items():
            by_split[split] += listed_files(source, image_set, folder, split)
        if not lists:
            by_split[source.split_of(folder) or 'train'] += inside
    return by_split


def find_lists(annotations: Path) -> Dict[str, Path]:
    """Return each split's list of images, in ``ImageSets`` beside the folder of XML files."""
    folder = annotations.parent / 'ImageSets'
    lists = {file.stem.lower(): file for pattern in ('*.txt', 'Main/*.txt')
             for file in folder.glob(pattern)}
    return {split: lists[name] for name, split in dict(trainval='train', **SPLITS).items()
            if name in lists}


def listed_files(source: Source, image_set: Path, annotations: Path, split: str) -> List[Path]:
    """Return the XML files of the images in a list; a number may follow a name."""
    files = []
    for line in read_lines(image_set):
        names = line, re.sub(r'\s+-?\d+$', '', line), Path(line).stem
        places = [annotations / f'{name}{x}' for name in names for x in ('.xml', '.XML')]
        found = list(filter(Path.is_file, places))[:1]
        files += found
        if not found and split == 'test':  # the challenge's test set has no public labels
            source.note('images of a test set without XML, left out', f'{line} of {image_set}')
        elif not found:
            source.add_fault(LabelError(
                'listed', f'{places[2]} does not exist, and {image_set} names it'))
    return files


def read_folder(source: Source, folder: Path, files: List[Path]) -> List[LabeledImage]:
    """Read the XML files of a folder; an image may have another suffix than in the XML."""
    parsed, names = [], []
    for file in files:
        try:
            root = ET.fromstring(file.read_bytes())  # bytes, as the XML names its encoding
        except (ET.ParseError, LookupError, OSError, ValueError) as error:
            source.add_fault(LabelError('xml', f'{file} is not valid XML ({error}), or not UTF-8'))
            continue
        name = (root.findtext('filename') or '').strip()
        names.append([f'{file.stem}{Path(name).suffix or ".jpg"}', *([name] if name else [])])
        parsed.append((file, root))
    paths = source.find_images(names, folder, source.split_of(folder))
    return source.read([
        Labels(path, file, map(partial(read_box, file), root.iter('object')),
               (root.findtext('size/width'), root.findtext('size/height')))
        for (file, root), path in zip(parsed, paths)], 'label files without image, left out')


def read_box(file: Path, entry: ET.Element) -> LabeledBox:
    """Read an ``object``; ``difficult`` objects become crowds, neither trained nor scored."""
    name = (entry.findtext('name') or '').strip()
    if not name or entry.find('bndbox') is None:
        raise LabelError('object', f'{file} has an object {name} without '
                         f'{"bndbox" if name else "name"}')
    corners = (to_number(entry.findtext(f'bndbox/{x}'), file)
               for x in ('xmin', 'ymin', 'xmax', 'ymax'))
    return LabeledBox(name, tuple(corners), file,
                      (entry.findtext('difficult') or '').strip() == '1')
