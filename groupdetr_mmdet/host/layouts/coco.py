"""COCO: one JSON, or one for each split, with the images beside it or anywhere in the folder."""
import json
from pathlib import Path
from typing import Any, Dict, List, Optional

from ...errors import ConfigError
from .common import (Dataset, LabeledBox, LabeledImage, Source, check_size, read_text,
                     to_number)

KEYS = dict(images=('id', ), annotations=('image_id', 'category_id'),  # and what entries go by
            categories=('id', 'supercategory'))

MARKS = b'\xef\xbb\xbf\xff\xfe \t\r\n'  # what a file may begin with: of its encoding, or blanks


def find(source: Source) -> List[Path]:
    """Find JSON files with images, annotations and categories."""
    return [file for file in source.label_files('*.json') if file == source.only or is_coco(file)]


def is_coco(file: Path) -> bool:
    """Whether a file looks like COCO's, also one that is cut short."""
    with file.open('rb') as start:
        head = start.read(1 << 20).replace(b'\0', b'')  # UTF-16 has zeros
    is_dict = head.lstrip(MARKS).startswith(b'{')
    return is_dict and any(f'"{key}"'.encode() in head for key in ('images', 'annotations'))


def read(source: Source, files: List[Path]) -> Dataset:
    """Read the files of all splits; file names are those of the real images."""
    by_split = choose_files(source, files)
    contents = {split: load(file, split) for split, file in by_split.items()}
    classes = list(dict.fromkeys(name for split, x in contents.items()
                                 for name in used_names(by_split[split], x)))
    splits = {split: read_split(source, by_split[split], split, x)
              for split, x in contents.items()}
    names = ', '.join(str(file.relative_to(source.root)) for file in by_split.values())
    return Dataset(f'COCO, {names}', classes, splits, source.notes)


def choose_files(source: Source, files: List[Path]) -> Dict[str, Path]:
    """Choose one file for each split, of which no two may be."""
    files = [file for file in files if file.name.startswith('instances')] or files
    if len(files) == 1:
        return dict(train=files[0])
    by_split = {}
    for file in files:
        split = source.split_of(file)
        if split is None or split in by_split:
            other = by_split.get(split) or next(x for x in files if x != file)
            raise ConfigError(
                f'DATA {source.root} has {file} and {other}, and their names do not say which is '
                'for training: call them train.json and val.json, or name one of them as DATA.')
        by_split[split] = file
    return {split: by_split[split] for split in ('train', 'val', 'test') if split in by_split}


def load(file: Path, split: str) -> Dict[str, List[dict]]:
    """Read a file, which must have COCO's form; one for testing may lack annotations."""
    try:
        content = json.loads(read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f'{file} is not valid JSON ({error}): put the whole file there.') from (
            error)
    if split == 'test' and isinstance(content, dict):
        content.setdefault('annotations', [])
    for key, identities in KEYS.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
            raise ConfigError(f'{file} has no list {key!r} of entries, which COCO requires: '
                              'correct it.')
        for name, x in ((name, x) for x in entries for name in identities):
            if isinstance(x.get(name), (list, dict)):
                raise ConfigError(f'{file} has {name}={x[name]} in {key}, which must be a number '
                                  'or a text: correct it.')
    return content


def field(entry: dict, name: str, where: Any) -> Any:
    """Return a field of an entry, or raise a ConfigError."""
    if name not in entry:
        raise ConfigError(f'{where} lacks the field {name!r}, which COCO requires: add it.')
    return entry[name]


def used_names(file: Path, content: Dict[str, List[dict]]) -> List[str]:
    """Names of the categories, without one that only stands above the others, as Roboflow's."""
    used = {annotation.get('category_id') for annotation in content['annotations']}
    above = {category.get('supercategory') for category in content['categories']}
    names = [str(category.get('name')) for category in content['categories']
             if category.get('id') in used or category.get('name') not in above]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f'{file} has two categories of the name {twice[0]}: rename one.')
    return names


def read_split(source: Source, file: Path, split: str,
               content: Dict[str, List[dict]]) -> List[LabeledImage]:
    """Read the images of a file."""
    categories = {field(x, 'id', f'{file} categories'): str(field(x, 'name', f'{file} categories'))
                  for x in content['categories']}
    by_image = {field(x, 'id', f'{file} images'): [] for x in content['images']}
    if len(by_image) < len(content['images']):
        raise ConfigError(f'{file} has two images of the same id: give each its own.')
    for annotation in content['annotations']:
        where = f'{file} annotation {annotation.get("id")}'
        image_id = field(annotation, 'image_id', where)
        if image_id not in by_image:
            raise ConfigError(f'{where} is of the image {image_id!r}, which the file does not have'
                              ': correct its image_id.')
        by_image[image_id].append(annotation)

    def read_image(entry: dict) -> Optional[LabeledImage]:
        where = f'{file} image {entry["id"]}'
        name = str(field(entry, 'file_name', where))
        path = source.find_image(name, file.parent, split)
        if path is None:
            source.note('images that are not there, left out', f'{name} of {file}')
        size = path and source.size(path)
        if not size:
            return None
        if entry.get('width') and entry.get('height'):
            declared = tuple(to_number(entry[x], where) for x in ('width', 'height'))
            check_size(declared, size, path, where)
        boxes = []
        for annotation in by_image[entry['id']]:
            where = f'{file} annotation {annotation.get("id")}'
            boxes += source.boxes([read_box(annotation, categories, where)], size, where)
        return LabeledImage(path, *size, boxes)

    return source.read(content['images'], read_image)


def read_box(annotation: dict, categories: Dict[Any, str], where: str) -> LabeledBox:
    """Read a box of a known category, ``left, top, width, height`` in pixels."""
    category, box = (field(annotation, x, where) for x in ('category_id', 'bbox'))
    if category not in categories:
        raise ConfigError(f'{where} is of the category {category!r}, which the file does not have'
                          ': correct its category_id.')
    if not isinstance(box, list) or len(box) != 4:
        raise ConfigError(f'{where} has bbox={box}, and a box is [left, top, width, height] in '
                          'pixels: correct it.')
    left, top, width, height = (to_number(x, where) for x in box)
    ignored = to_number(annotation.get('iscrowd') or annotation.get('ignore') or 0, where)
    return LabeledBox(categories[category], (left, top, left + width, top + height),
                      bool(ignored))
