"""COCO: one JSON, or one for each split, with the images beside it or anywhere in the folder."""
import json
from pathlib import Path
from typing import Any, Container, Dict, List, Optional

from ...errors import ConfigError
from .common import Dataset, LabeledBox, LabeledImage, Source, has_pattern, read_text, to_number

FIELDS = dict(images=('id', 'file_name'), annotations=('image_id', 'category_id', 'bbox'),
              categories=('id', 'name'))  # that are required
COMPARED = 'id', 'image_id', 'category_id', 'supercategory'
# An object with such a key, also one that is cut short, after marks of an encoding or blanks.
START = rb'\A[\xef\xbb\xbf\xff\xfe \t\r\n]*\{[\s\S]*"(images|annotations)"'


def find(source: Source) -> List[Path]:
    """Find JSON files with images, annotations and categories."""
    return [file for file in source.label_files('*.json')
            if file == source.only or has_pattern(file, START)]


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
        raise ConfigError(f'{file} is not valid JSON ({error}): put all of it there.') from error
    if split == 'test' and isinstance(content, dict):
        content.setdefault('annotations', [])
    for part, fields in FIELDS.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
            raise ConfigError(f'{file} has no list {part!r} of entries, which COCO requires: '
                              'correct it.')
        for entry in entries:
            lacking = [name for name in fields if name not in entry]
            if lacking:
                raise ConfigError(f'{file} {part}, id {entry.get("id")}, lacks the field '
                                  f'{lacking[0]!r}, which COCO requires: add it.')
            wrong = [name for name in COMPARED if isinstance(entry.get(name), (list, dict))]
            if wrong:
                raise ConfigError(f'{file} has {wrong[0]}={entry[wrong[0]]} in {part}, which must '
                                  'be a number or a text: correct it.')
    return content


def used_names(file: Path, content: Dict[str, List[dict]]) -> List[str]:
    """Names of the categories, without one that only stands above the others, as Roboflow's."""
    used = {annotation['category_id'] for annotation in content['annotations']}
    above = {category.get('supercategory') for category in content['categories']}
    names = [str(category['name']) for category in content['categories']
             if category['id'] in used or category['name'] not in above]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f'{file} has two categories of the name {twice[0]}: rename one.')
    return names


def read_split(source: Source, file: Path, split: str,
               content: Dict[str, List[dict]]) -> List[LabeledImage]:
    """Read the images of a file."""
    categories = {category['id']: str(category['name']) for category in content['categories']}
    by_image = {image['id']: [] for image in content['images']}
    if len(by_image) < len(content['images']):
        raise ConfigError(f'{file} has two images of the same id: give each its own.')
    for annotation in content['annotations']:
        where = f'{file} annotation {annotation.get("id")}'
        check_known(annotation, 'image', by_image, where)
        by_image[annotation['image_id']].append((annotation, where))

    def read_image(image: dict) -> Optional[LabeledImage]:
        path = source.find_image(str(image['file_name']), file.parent, split)
        if path is None:
            source.note('images that are not there, left out', f'{image["file_name"]} of {file}')
            return None
        return source.labeled_image(
            path, ((read_box(x, categories, where), where) for x, where in by_image[image['id']]),
            f'{file} image {image["id"]}', [image.get('width'), image.get('height')])

    return source.read(content['images'], read_image)


def check_known(annotation: dict, what: str, known: Container, where: str) -> None:
    """Refuse an annotation of an image or a category that the file does not have."""
    if annotation[f'{what}_id'] not in known:
        raise ConfigError(f'{where} is of the {what} {annotation[f"{what}_id"]!r}, which the file '
                          f'does not have: correct its {what}_id.')


def read_box(annotation: dict, categories: Dict[Any, str], where: str) -> LabeledBox:
    """Read a box of a known category, ``left, top, width, height`` in pixels."""
    check_known(annotation, 'category', categories, where)
    box = annotation['bbox']
    if not isinstance(box, list) or len(box) != 4:
        raise ConfigError(f'{where} has bbox={box}, and a box is [left, top, width, height] in '
                          'pixels: correct it.')
    left, top, width, height = (to_number(x, where) for x in box)
    ignored = to_number(annotation.get('iscrowd') or annotation.get('ignore') or 0, where)
    return LabeledBox(categories[annotation['category_id']],
                      (left, top, left + width, top + height), bool(ignored))
