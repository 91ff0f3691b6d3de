"""What a COCO annotation file must say so that a training or a score is right.

One pass over the whole file, in columns, before pycocotools or mmdet look at it: they drop what
they do not understand, or fail on it in the middle of a run.
"""
import functools
import logging
from collections import Counter
from itertools import chain
from typing import Any, Iterable, List, NamedTuple, NoReturn, Sequence

import numpy as np
from mmengine.logging import print_log

from ..errors import ConfigError

NUMBER, IDENTITY = (int, float), (int, float, str)
FIELDS = {  # of each part, the fields that COCO requires and what they may be
    'images': dict(id=IDENTITY, file_name=(str, ), width=NUMBER, height=NUMBER),
    'annotations': dict(id=IDENTITY, image_id=IDENTITY, category_id=IDENTITY, bbox=(list, ),
                        area=NUMBER),
    'categories': dict(id=IDENTITY, name=(str, )),
}
KINDS = {str: 'a text', int: 'a number', float: 'a number', list: 'a list of four numbers'}
LARGEST = 10  # times its image: no annotation tool draws a wider box


class Columns(NamedTuple):
    """The annotations of a file in columns, one entry each.

    Attributes:
        ids (list): Their ids.
        boxes (ndarray): Left, top, width and height in pixels, shape (n, 4).
        areas (ndarray): Areas in square pixels, shape (n,).
        sizes (ndarray): Width and height of each one's image, NaN without an image, shape (n, 2).
    """
    ids: list
    boxes: np.ndarray
    areas: np.ndarray
    sizes: np.ndarray


class Fault(NamedTuple):
    """A kind of annotation that mmdet leaves out or that would make a result wrong.

    Attributes:
        what (str): What is wrong, as the end of "N annotations ...".
        found (ndarray): Which annotations have it, bools of shape (n,).
        trains (bool): Whether a training may go on without them, as mmdet does.
        scores (bool): Whether an evaluation may go on with them.
    """
    what: str
    found: np.ndarray
    trains: bool = False
    scores: bool = False


def check_annotations(coco: Any, path: str, scored: bool) -> None:
    """Check the content of an annotation file.

    Args:
        coco (Any): What the JSON file holds.
        path (str): Its name, for the message.
        scored (bool): Whether it is evaluated on, and not trained on. An evaluation counts every
            annotation, a training leaves out those that cannot be used.

    Raises:
        ConfigError: If it is not in COCO's format, or if the model would be trained on wrong boxes
            or scored wrongly. It names the entry. What is merely left out is logged, with one
            warning for each kind.
    """
    if not isinstance(coco, dict):
        raise ConfigError(f'ann_file {path} holds {kind_of(coco)} and not an object with images, '
                          "annotations and categories: write it in COCO's format.")
    for part in FIELDS:
        if part == 'annotations' and part not in coco and scored:
            continue  # a test set whose annotations nobody has
        check_part(coco, part, path)
    if not coco['images']:
        raise ConfigError(f'ann_file {path} has no images: name the file of the whole data set.')
    check_images(coco['images'], path)
    annotations = coco.get('annotations')
    if annotations:
        columns = read_columns(coco, path)
        check_crowds(annotations, path, scored)
        reported = np.zeros(len(annotations), bool)
        for fault in find_faults(columns):
            report_fault(fault._replace(found=fault.found & ~reported), columns, path, scored)
            reported |= fault.found
        check_pixels(columns, path)
        if scored and 0 in columns.ids:
            warn_once(f'ann_file {path} has an annotation with id 0, which pycocotools never '
                      'counts as found: number annotations from 1.')


def kind_of(value: Any) -> str:
    """Name the type of a value that is of a wrong one."""
    return 'nothing' if value is None else f'a {type(value).__name__}'


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, once in a process."""
    print_log(message, logger='current', level=logging.WARNING)


def check_part(coco: dict, part: str, path: str) -> None:
    """Check that a part of the file is a list of entries with fields of the right types."""
    entries = coco.get(part)
    if not isinstance(entries, list) or not set(map(type, entries)) <= {dict}:
        raise ConfigError(f'ann_file {path}: {part} must be a list of objects' +
                          ('' if part in coco else ', and there is none') +
                          ": write the file in COCO's format.")
    for field, types in FIELDS[part].items():
        try:
            values = [entry[field] for entry in entries]
        except KeyError:
            entry = next(entry for entry in entries if field not in entry)
            raise ConfigError(
                f"ann_file {path} lacks the field '{field}' in {name_entry(part, entry)}: COCO "
                f'requires {", ".join(FIELDS[part])} of {part}.') from None
        found = set(map(type, values))
        if types == IDENTITY and str in found:
            types = (type(values[0]), )  # texts or numbers, not both
        if not found <= set(types):
            wrong = next(i for i, value in enumerate(values) if type(value) not in types)
            refuse(path, part, entries[wrong], field, f'must be {KINDS[types[0]]}')
        if field == 'id':
            check_unique(entries, values, part, path)
        if float in found and field not in ('width', 'height', 'area') and \
                not np.isfinite(values).all():
            refuse(path, part, entries[int(np.isfinite(values).argmin())], field,
                   'must be a finite number')


def name_entry(part: str, entry: dict) -> str:
    """Say which entry of the file it is, by its id where it has one."""
    name = dict(images='image', annotations='annotation', categories='category')[part]
    return f'the {name} with id {entry["id"]!r}' if 'id' in entry else f'an entry of {part}'


def refuse(path: str, part: str, entry: dict, field: str, problem: str) -> NoReturn:
    """Raise the ConfigError for a field of an entry."""
    shown = repr(entry[field])
    shown = shown if len(shown) < 60 else f'{shown[:60]}...'
    raise ConfigError(f'ann_file {path}: {field} of {name_entry(part, entry)} is {shown} and '
                      f'{problem}; correct it or leave this entry out.')


def check_unique(entries: Sequence[dict], ids: list, part: str, path: str) -> None:
    """Refuse ids that occur twice."""
    if len(set(ids)) < len(ids):
        twice, times = Counter(ids).most_common(1)[0]
        name = name_entry(part, dict(id=twice)).replace('the ', '')
        raise ConfigError(f'ann_file {path} has {times} times the {name}: give every entry of '
                          f'{part} an id of its own.')


def check_images(images: Sequence[dict], path: str) -> None:
    """Refuse images without a size or a name, and warn of those listed twice."""
    for field in ('width', 'height'):
        sizes = as_numbers([image[field] for image in images])
        wrong = ~((sizes >= 1) & (sizes < np.inf))
        if wrong.any():
            refuse(path, 'images', images[int(wrong.argmax())], field,
                   'must be a number of pixels')
    names = [image['file_name'] for image in images]
    for image in images:
        if not image['file_name'].strip() or '\0' in image['file_name']:
            refuse(path, 'images', image, 'file_name', 'must be the name of a file')
    if len(set(names)) < len(names):
        name, times = Counter(names).most_common(1)[0]
        warn_once(f'{len(names) - len(set(names))} images of ann_file {path} are listed again '
                  f'under another id, first {name} ({times} times): objects of one entry are '
                  'background in the other.')


def as_numbers(values: Iterable) -> np.ndarray:
    """Convert to float64; an integer that is too large for it becomes infinite."""
    values = list(values)
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return np.array([float(x) if abs(x) < 1e300 else np.inf for x in values])


def read_columns(coco: dict, path: str) -> Columns:
    """Read boxes and areas, after a check that every box is four numbers."""
    annotations = coco['annotations']
    boxes = [annotation['bbox'] for annotation in annotations]
    if set(map(len, boxes)) != {4} or \
            not set(map(type, chain.from_iterable(boxes))) <= set(NUMBER):
        wrong = next(annotation for annotation in annotations if len(annotation['bbox']) != 4 or
                     not set(map(type, annotation['bbox'])) <= set(NUMBER))
        refuse(path, 'annotations', wrong, 'bbox', 'must be four numbers')
    sizes = {image['id']: (image['width'], image['height']) for image in coco['images']}
    unknown = (np.nan, np.nan)
    return Columns(
        ids=[annotation['id'] for annotation in annotations],
        boxes=as_numbers(chain.from_iterable(boxes)).reshape(-1, 4),
        areas=as_numbers(annotation['area'] for annotation in annotations),
        sizes=np.array([sizes.get(annotation['image_id'], unknown) for annotation in annotations],
                       np.float64))


def check_crowds(annotations: Sequence[dict], path: str, scored: bool) -> None:
    """Refuse ``iscrowd`` other than 0 or 1; an evaluation wants it said."""
    for annotation in annotations:
        crowd = annotation.get('iscrowd', None if scored else 0)
        if crowd not in (0, 1):
            if 'iscrowd' in annotation:
                refuse(path, 'annotations', annotation, 'iscrowd', 'must be 0 or 1')
            raise ConfigError(f"ann_file {path} lacks the field 'iscrowd' in "
                              f'{name_entry("annotations", annotation)}, without which '
                              'pycocotools cannot evaluate: write 0, or 1 for a crowd.')


def find_faults(columns: Columns) -> List[Fault]:
    """Find annotations that mmdet drops or that would be trained or scored wrongly."""
    boxes, sizes, areas = columns.boxes, columns.sizes, columns.areas
    with np.errstate(invalid='ignore', over='ignore'):
        starts, extents = boxes[:, :2], boxes[:, 2:]
        inside = np.minimum(starts + extents, sizes) - np.maximum(starts, 0)
        return [
            Fault('belong to no image of the file', np.isnan(sizes[:, 0]), trains=True),
            Fault('have a bbox with NaN', np.isnan(boxes).any(1), trains=True),
            Fault(f'have a bbox that is infinite or more than {LARGEST} times as wide or high as '
                  'their image', (np.abs(boxes) == np.inf).any(1) |
                  (np.abs(extents) > LARGEST * sizes).any(1)),
            Fault('have a bbox without width or height (it is left, top, width, height)',
                  (extents <= 0).any(1), trains=True),
            Fault('have a bbox outside of their image (it is left, top, width, height in pixels)',
                  (inside <= 0).any(1), trains=True),
            Fault('have an area that is NaN, infinite or below 0',
                  ~((areas >= 0) & (areas < np.inf))),
            Fault('have an area of 0', areas == 0, trains=True, scores=True),
            Fault('are less than a pixel wide or high', (extents < 1).any(1), trains=True,
                  scores=True),
        ]


def report_fault(fault: Fault, columns: Columns, path: str, scored: bool) -> None:
    """Refuse or log the annotations with a fault."""
    if not fault.found.any() or scored and fault.scores:
        return
    first = int(fault.found.argmax())
    box = [float(x) for x in columns.boxes[first]]
    found = (f'{int(fault.found.sum())} of {len(columns.ids)} annotations of ann_file {path} '
             f'{fault.what}, first the one with id {columns.ids[first]!r} (bbox {box}, area '
             f'{float(columns.areas[first])})')
    if scored or not fault.trains:
        wrong = 'count in the score as objects' if scored else 'would be trained on'
        raise ConfigError(f'{found} and {wrong}: correct them or leave them out of the file.')
    warn_once(f'{found}; mmdet leaves them out.')


def check_pixels(columns: Columns, path: str) -> None:
    """Boxes between 0 and 1, and boxes that are mostly outside, are in another convention."""
    if (np.abs(columns.boxes) <= 1).all():
        raise ConfigError(f'ann_file {path}: no number of any bbox is above 1, as if they were '
                          'normalized: COCO wants left, top, width and height in pixels.')
    with np.errstate(invalid='ignore', over='ignore', divide='ignore'):
        starts, extents = columns.boxes[:, :2], columns.boxes[:, 2:]
        inside = np.minimum(starts + extents, columns.sizes) - np.maximum(starts, 0)
        shares = (inside / extents).prod(1)
        mostly_outside = (inside > 0).all(1) & (shares < 0.5)
    if mostly_outside.any():
        first = int(mostly_outside.argmax())
        warn_once(f'{int(mostly_outside.sum())} of {len(columns.ids)} annotations of ann_file '
                  f'{path} have less than half of their bbox inside the image, first the one with '
                  f'id {columns.ids[first]!r} ({columns.boxes[first].tolist()}): a bbox is left, '
                  'top, width, height.')
