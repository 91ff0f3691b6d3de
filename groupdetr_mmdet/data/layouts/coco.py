"""COCO: one or more JSON files for a split, and images anywhere in the folder."""
import json
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, Dict, List
from urllib.parse import unquote

import numpy as np
from pycocotools import mask as mask_utils

from ...errors import ConfigError
from .common import (Dataset, LabelError, LabeledBox, LabeledImage, Labels, Source, has_pattern,
                     read_text, to_number)

PARTS = dict(images=['id'], annotations=[], categories=['id', 'name'])  # required keys
IDS = 'id', 'image_id', 'category_id'
KEYS = *IDS, 'supercategory'  # must be hashable
# A JSON object, whole or truncated, with a key of COCO, after byte order marks or blanks.
COCO_START = rb'\A[\xef\xbb\xbf\xff\xfe \t\r\n]*\{[\s\S]*?"(images|annotations)"'


def find(source: Source) -> List[Path]:
    """Find JSON files with images, annotations and categories."""
    return [file for file in source.label_files('*.json')
            if file == source.only or has_pattern(file, COCO_START, -1)]


def read(source: Source, files: List[Path]) -> Dataset:
    """Read the files of all splits."""
    files = [file for file in files if file.name.startswith('instances')] or files
    parsed = {file: parse(file) for file in files}
    others = [file for file in files if not has_boxes(parsed[file])]
    for file in others if len(others) < len(files) else ():
        source.note('JSON files without detection data, left out', file)
        del parsed[file]
    contents = {file: check(file, content, source.split_of(file))
                for file, content in parsed.items()}
    by_split = choose_files(source, contents)
    classes, splits = {}, {}
    for split, group in by_split.items():
        images = splits[split] = []
        for file in group:
            classes.update(dict.fromkeys(used_names(source, file, contents[file])))
            more = read_file(source, file, source.split_of(file) or split, contents[file])
            if twice := {image.path for image in images} & {image.path for image in more}:
                raise ConfigError(
                    f'DATA {source.root} has {group[0]} and {file}, both with labels of '
                    f'{min(twice)}: name the files that count with --train and --val, or one of '
                    'them in the place of DATA.')
            images += more
    names = (file.relative_to(source.root) if source.root in file.parents else file
             for group in by_split.values() for file in group)
    return Dataset(f'COCO, {", ".join(map(str, names))}', list(classes), splits, source.notes())


def choose_files(source: Source, contents: Dict[Path, dict]) -> Dict[str, List[Path]]:
    """Group files by split, as their names or folders name it; default: train.

    A file without a split is left out if all its images are in files of a split, as in
    ``trainval.json``.
    """
    if len(contents) == 1:
        return dict(train=list(contents))
    names = {file: {image_name(image) for image in content['images']}
             for file, content in contents.items()}
    by_split = defaultdict(list)
    for file in contents:
        by_split[source.split_of(file)].append(file)
    rest = by_split.pop(None, [])
    named = set().union(*(names[file] for group in by_split.values() for file in group))
    for file in rest:
        if 'train' in by_split and names[file] <= named:
            source.note('label files with the images of other files, left out', file)
        else:
            if named:
                source.note('label files named for no split, used for training', file)
            by_split['train'].append(file)
    return {split: by_split[split] for split in ('train', 'val', 'test') if split in by_split}


def parse(file: Path) -> dict:
    """Read a JSON file, empty if it holds no dict."""
    try:
        content = json.loads(read_text(file))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f'{file} is not valid JSON ({error}): copy the whole file.') from error
    return content if isinstance(content, dict) else {}


def has_boxes(content: dict) -> bool:
    """Return whether a file may have boxes; captions have no classes, panoptic files segments."""
    annotations = content.get('annotations')
    first = annotations[:1] if isinstance(annotations, list) else []
    return 'categories' in content and not any(
        'segments_info' in x for x in first if isinstance(x, dict))


def check(file: Path, content: dict, split: str) -> Dict[str, List[dict]]:
    """Return the content of a file in COCO's format; a file for testing may lack annotations.

    Raises:
        ConfigError: If it is not in COCO's format.
    """
    if split == 'test':
        content.setdefault('annotations', [])
    for part, required in PARTS.items():
        entries = content.get(part)
        if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
            raise ConfigError(f'{file} has no list {part!r} of entries, which COCO requires: '
                              'correct it.')
        for entry in entries:
            wrong = [name for name in KEYS if isinstance(entry.get(name), (list, dict))]
            if wrong := wrong + [name for name in required if name not in entry]:
                raise ConfigError(f'{file} has {wrong[0]}={entry.get(wrong[0])} in {part}, which '
                                  'must be a number or a text: correct it.')
            entry.update((name, same_id(entry[name])) for name in IDS if name in entry)
    return content


def same_id(value: Any) -> str:
    """Return an id as a text: tools mix 1, 1.0 and '1'."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def image_name(image: dict) -> str:
    """Return the name of an image's file, in LVIS from its address."""
    return str(image.get('file_name') or image.get('coco_url') or '').split('://')[-1]


def image_names(image: dict, file: Path) -> List[str]:
    """Return possible names of an image: also in a folder of the file's name, or decoded."""
    name = image_name(image)
    return [name, f'{file.stem}/{name}', unquote(name)]


def used_names(source: Source, file: Path, content: Dict[str, List[dict]]) -> List[str]:
    """Return the names of the categories, without unused super-categories (Roboflow's)."""
    categories = content['categories']
    used = {annotation.get('category_id') for annotation in content['annotations']}
    above = {x.get('supercategory') for x in categories if x.get('supercategory') != x['name']}
    names = []
    for category in categories:
        if category['id'] in used or category['name'] not in above:
            names.append(str(category['name']))
        else:
            source.note('super-categories without objects, left out', category['name'])
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f'{file} has two categories of the name {twice[0]}: rename one.')
    return names


def read_file(source: Source, file: Path, split: str,
              content: Dict[str, List[dict]]) -> List[LabeledImage]:
    """Read the images of a file."""
    categories = {category['id']: str(category['name']) for category in content['categories']}
    images, by_image = content['images'], {image['id']: [] for image in content['images']}
    if len(by_image) < len(images):
        raise ConfigError(f'{file} has two images with the same id: give each image its own id.')
    for annotation in content['annotations']:
        if annotation.get('image_id') in by_image:
            by_image[annotation['image_id']].append(annotation)
        else:
            source.note('annotations of images that the file does not list, left out',
                        f'{file} annotation {annotation.get("id")}')
    relative = are_fractions([x.get('bbox') or () for x in content['annotations']])
    if relative:
        source.note('label files whose boxes are fractions of their image', file)

    if are_corners(images, by_image):
        source.note('label files whose boxes look like left, top, right, bottom, and are read as '
                    'left, top, width, height', file)
    names = [image_names(image, file) for image in images]
    paths = source.find_images(names, file.parent, split)
    return source.read([
        Labels(path, f'{image_name(image)} of {file} image {image["id"]}',
               map(partial(read_box, file, categories), by_image[image['id']]),
               (image.get('width'), image.get('height')))
        for image, path in zip(images, paths)], 'missing images, left out', relative)


def are_fractions(boxes: List[Any]) -> bool:
    """Return whether all numbers of boxes are between -1 and 1, and so not pixels."""
    try:
        return any(boxes) and all(abs(float(x)) <= 1 for box in boxes for x in box)
    except (TypeError, ValueError, OverflowError):
        return False


def are_corners(images: List[dict], by_image: Dict[str, List[dict]]) -> bool:
    """Return whether boxes fit as corners, and most, as left, top, width, height, do not."""
    try:
        left, top, right, bottom, width, height = np.array([
            (*x['bbox'], image['width'], image['height'])
            for image in images for x in by_image[image['id']]], float).T
    except (KeyError, TypeError, ValueError, OverflowError):  # no box, or no size
        return False
    inside = (left < right) & (top < bottom) & (right <= width) & (bottom <= height)
    return inside.all() and ((left + right > width + 1) | (top + bottom > height + 1)).mean() > .5


def read_box(file: Path, categories: Dict[Any, str], annotation: dict) -> LabeledBox:
    """Read a box, ``left, top, width, height`` in pixels, or the box of a segmentation."""
    where = f'{file} annotation {annotation.get("id")}'
    if 'segments_info' in annotation:
        raise LabelError('panoptic', f'{where} has panoptic segments instead of a box and a '
                         'category (panopticapi converts them to detection)')
    if annotation.get('category_id') not in categories:
        raise LabelError('category', f'{where} is of the category '
                         f'{annotation.get("category_id")}, which the file does not have')
    box = annotation.get('bbox') or box_of(annotation.get('segmentation'))
    if not isinstance(box, list) or len(box) != 4:
        raise LabelError('bbox', f'{where} has bbox={annotation.get("bbox")}, and a box is [left, '
                         'top, width, height] in pixels')
    left, top, width, height = (to_number(x, where) for x in box)
    ignored = to_number(annotation.get('iscrowd') or annotation.get('ignore') or 0, where)
    return LabeledBox(categories[annotation['category_id']],
                      (left, top, left + width, top + height), where, bool(ignored))


def box_of(segmentation: Any) -> List[float]:
    """Return the box around polygons or a mask, empty for an invalid segmentation."""
    try:
        if isinstance(segmentation, dict):
            if isinstance(segmentation['counts'], list):
                segmentation = mask_utils.frPyObjects(segmentation, *segmentation['size'])
            return mask_utils.toBbox(segmentation).tolist()
        corners = np.concatenate([np.reshape(x, (-1, 2)) for x in segmentation]).astype(float)
        return [*corners.min(0), *np.ptp(corners, 0)]
    except (TypeError, ValueError, KeyError, AttributeError):
        return []
