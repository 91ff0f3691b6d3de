"""What a COCO annotation file must say so that a training or a score is right.

One pass over the whole file before pycocotools or mmdet look at it: they drop what they do not
understand, or fail on it in the middle of a run.
"""
import math
import reprlib
from collections import Counter
from typing import Any, Iterator, NamedTuple, Optional, Sequence

import numpy as np

from ..errors import ConfigError, warn_once


def is_number(value: Any) -> bool:
    """Whether a value is a number that float64 can hold; also NaN and infinity."""
    return type(value) is float or type(value) is int and abs(value) < 2**63


def is_box(value: Any) -> bool:
    """Whether a value is a list of four numbers."""
    return type(value) is list and len(value) == 4 and all(map(is_number, value))


TEXT = 'a text', lambda value: type(value) is str
NUMBER = 'a number', is_number
FINITE = 'a finite number', lambda value: is_number(value) and math.isfinite(value)
PIXELS = 'a number of pixels', lambda value: is_number(value) and 1 <= value < math.inf
FILE = 'the name of a file', lambda value: (
    type(value) is str and bool(value.strip()) and '\0' not in value)
ID = None  # a text where the first is one, and else a finite number
FIELDS = {  # of each part, the fields that COCO requires, what they are, and the test of it
    'images': dict(id=ID, file_name=FILE, width=PIXELS, height=PIXELS),
    'annotations': dict(
        id=ID, image_id=ID, category_id=ID, area=NUMBER,
        bbox=('four numbers: left, top, width, height in pixels', is_box),
        iscrowd=('0, or 1 for a crowd', lambda value: value in (0, 1))),
    'categories': dict(id=ID, name=TEXT),
}
ENTRIES = dict(images='image', annotations='annotation', categories='category')
LARGEST = 10  # times its image: no annotation tool draws a wider box
LEFT_OUT = '; mmdet leaves them out.'


class Fault(NamedTuple):
    """A kind of annotation that mmdet leaves out or that would make a result wrong.

    What is said of it in a training and in an evaluation is the end of a warning, '' for none, or
    None where it is refused.
    """
    what: str  # the end of 'N annotations ...'
    found: np.ndarray  # which annotations have it, bools of shape (n,)
    trained: Optional[str] = None
    scored: Optional[str] = None


def check_annotations(coco: dict, path: str, scored: bool) -> None:
    """Check the content of an annotation file.

    Args:
        coco (dict): What the JSON file holds.
        path (str): Its name, for the message.
        scored (bool): Whether it is evaluated on, and not trained on. An evaluation counts every
            annotation, a training leaves out those that cannot be used.

    Raises:
        ConfigError: If it is not in COCO's format, or if the model would be trained on wrong boxes
            or scored wrongly. It names the entry. What is merely left out is logged, with one
            warning for each kind.
    """
    for part in FIELDS:
        if part != 'annotations' or part in coco or not scored:  # nobody has those of a test set
            check_part(coco, part, path, scored)
    images, annotations = coco['images'], coco.get('annotations')
    if not images:
        raise ConfigError(f'ann_file {path} has no images: name the file of the whole data set.')
    names = Counter(image['file_name'] for image in images)
    name, times = names.most_common(1)[0]
    if times > 1:
        warn_once(f'{len(images) - len(names)} images of ann_file {path} are listed again under '
                  f'another id, first {name} ({times} times): objects of one entry are background '
                  'in the other.')
    if annotations:
        check_boxes(annotations, images, path, scored)
        if scored and any(annotation['id'] == 0 for annotation in annotations):
            warn_once(f'ann_file {path} has an annotation with id 0, which pycocotools never '
                      'counts as found: number annotations from 1.')


def check_part(coco: dict, part: str, path: str, scored: bool) -> None:
    """Check that a part of the file is a list of entries whose fields are what they must be."""
    entries = coco.get(part)
    if not isinstance(entries, list) or not set(map(type, entries)) <= {dict}:
        raise ConfigError(f'ann_file {path}: {part} must be a list of objects' +
                          ('' if part in coco else ', and there is none') +
                          ": write the file in COCO's format.")

    def name(entry: dict) -> str:
        return (f'the {ENTRIES[part]} with id {entry["id"]!r}' if 'id' in entry else
                f'an entry of {part}')

    for field, required in FIELDS[part].items():
        having = [entry for entry in entries if field in entry]
        is_text = bool(having) and type(having[0][field]) is str
        what, fits = required or (TEXT if is_text else FINITE)
        if len(having) < len(entries) and (scored or field != 'iscrowd'):
            lacking = next(entry for entry in entries if field not in entry)
            raise ConfigError(f"ann_file {path} lacks the field '{field}' in {name(lacking)}: "
                              f'COCO requires it, {what}.')
        wrong = next((entry for entry in having if not fits(entry[field])), None)
        if wrong is not None:
            raise ConfigError(
                f'ann_file {path}: {field} of {name(wrong)} is {reprlib.repr(wrong[field])} and '
                f'must be {what}; correct it or leave this entry out.')
    for twice, times in Counter(entry['id'] for entry in entries).most_common(1):
        if times > 1:
            raise ConfigError(f'ann_file {path} has {times} times the {ENTRIES[part]} with id '
                              f'{twice!r}: give every entry of {part} an id of its own.')


def check_boxes(annotations: Sequence[dict], images: Sequence[dict], path: str,
                scored: bool) -> None:
    """Refuse annotations with a fault, or log them, each with its first fault alone."""
    boxes = np.array([annotation['bbox'] for annotation in annotations], np.float64)
    areas = np.array([annotation['area'] for annotation in annotations], np.float64)
    by_id = {image['id']: (image['width'], image['height']) for image in images}
    sizes = np.array([by_id.get(annotation['image_id'], (np.nan, np.nan))
                      for annotation in annotations], np.float64)
    if (np.abs(boxes) <= 1).all():
        raise ConfigError(f'ann_file {path}: no number of any bbox is above 1, as if they were '
                          'normalized: COCO wants left, top, width and height in pixels.')
    reported = np.zeros(len(annotations), bool)
    with np.errstate(invalid='ignore', over='ignore', divide='ignore'):
        for fault in find_faults(boxes, areas, sizes):
            found = fault.found & ~reported
            reported |= found
            end = fault.scored if scored else fault.trained
            if not found.any() or end == '':
                continue
            first = int(found.argmax())
            said = (f'{int(found.sum())} of {len(found)} annotations of ann_file {path} '
                    f'{fault.what}, first the one with id {annotations[first]["id"]!r} (bbox '
                    f'{boxes[first].tolist()}, area {float(areas[first])})')
            if end is None:
                wrong = 'count in the score as objects' if scored else 'would be trained on'
                raise ConfigError(f'{said} and {wrong}: correct them or leave them out of the '
                                  'file.')
            warn_once(said + end)


def find_faults(boxes: np.ndarray, areas: np.ndarray, sizes: np.ndarray) -> Iterator[Fault]:
    """Find annotations that mmdet drops or that would be trained or scored wrongly.

    Args:
        boxes (ndarray): Left, top, width and height in pixels, shape (n, 4).
        areas (ndarray): Areas in square pixels, shape (n,).
        sizes (ndarray): Width and height of each one's image, NaN without an image, shape (n, 2).
    """
    starts, extents = boxes[:, :2], boxes[:, 2:]
    inside = np.minimum(starts + extents, sizes) - np.maximum(starts, 0)
    yield Fault('belong to no image of the file', np.isnan(sizes[:, 0]), LEFT_OUT)
    yield Fault('have a bbox with NaN', np.isnan(boxes).any(1), LEFT_OUT)
    yield Fault(f'have a bbox that is infinite or more than {LARGEST} times as wide or high as '
                'their image',
                np.isinf(boxes).any(1) | (np.abs(extents) > LARGEST * sizes).any(1))
    yield Fault('have a bbox without width or height (it is left, top, width, height)',
                (extents <= 0).any(1), LEFT_OUT)
    yield Fault('have a bbox outside of their image (it is left, top, width, height in pixels)',
                (inside <= 0).any(1), LEFT_OUT)
    yield Fault('have an area that is NaN, infinite or below 0',
                ~((areas >= 0) & (areas < np.inf)))
    yield Fault('have an area of 0', areas == 0, LEFT_OUT, '')
    yield Fault('are less than a pixel wide or high', (extents < 1).any(1), LEFT_OUT, '')
    yield Fault('have less than half of their bbox inside the image (it is left, top, width, '
                'height)', (inside / extents).prod(1) < 0.5, '.', '.')
