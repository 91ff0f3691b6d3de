"""Checks of a COCO annotation file, before pycocotools or mmdet read it.

An error is raised for annotations that make a result meaningless, and a warning for other faults:
training leaves out the annotations that mmdet leaves out, an evaluation counts as pycocotools.
"""
import math
import reprlib
from collections import Counter
from typing import Any, Iterator, List, NamedTuple, Sequence, Union

import numpy as np
from pycocotools import mask as mask_utils

from ..errors import ConfigError, warn_once


def is_number(value: Any) -> bool:
    """Return whether a value is a number that fits into float64, NaN and infinity included."""
    return type(value) is float or type(value) is int and abs(value) < 2**63


TEXT = 'a text', lambda x: type(x) is str
FINITE = 'a finite number', lambda x: is_number(x) and math.isfinite(x)
PIXELS = 'a number of pixels', lambda x: is_number(x) and 1 <= x < math.inf
FILE = 'the name of a file', lambda x: type(x) is str and bool(x.strip()) and '\0' not in x
BOX = 'four numbers, left, top, width, height in pixels', lambda x: (
    type(x) is list and len(x) == 4 and all(map(is_number, x)))
ID = None  # a text if the first id is a text, else a finite number
FIELDS = {  # part of the file -> required fields, each with its description and its test
    'images': dict(id=ID, file_name=FILE, width=PIXELS, height=PIXELS),
    'annotations': dict(image_id=ID, category_id=ID, bbox=BOX, area=('a number', is_number),
                        iscrowd=('0, or 1 for a crowd', lambda x: x in (0, 1, None))),
    'categories': dict(id=ID, name=TEXT),
}
LARGEST_BOX = 10  # of a box, relative to its image: no annotation tool draws a wider box
LEFT_OUT, COUNTED = '; they are left out', '; they count, as pycocotools counts them'
NO_MASK = 'have no segmentation'
NO_POLYGON = 'have a segmentation without a polygon of at least three corners'
NO_RLE = 'have a segmentation that is neither polygons nor an RLE of the pixels of its image'


class Fault(NamedTuple):
    """A kind of fault, and the annotations with this fault."""
    what: str  # message: 'N annotations WHAT'
    found: np.ndarray  # bools of shape (n,)
    refused: bool = False  # an error, not a warning
    effect: str = ''  # end of the warning


def check_annotations(coco: dict, path: str, scored: bool, masks: str = '') -> None:
    """Check the content of an annotation file, and complete it in place.

    Annotations get ids from 1: pycocotools requires numbers, and does not match id 0.

    Args:
        coco (dict): Content of the file.
        path (str): Name of the file, for messages.
        scored (bool): Whether the file is for evaluation, not for training.
        masks (str): 'loaded' or 'scored' if segmentations are used.

    Raises:
        ConfigError: If an entry is not in COCO's format or makes the result meaningless.
    """
    for part in FIELDS:
        if part in coco or part != 'annotations' or not scored:  # test sets may have no labels
            check_part(coco, part, path)
    if not coco['images']:
        raise ConfigError(f'ann_file {path} has no images: name the file of the whole data set.')
    warn_repeated(coco['images'], 'file_name', path, 'objects of one entry are background in '
                  'the other')
    if annotations := coco.get('annotations'):
        check_objects(coco, path, scored, masks)
        warn_repeated([x for x in annotations if 'id' in x], 'id', path, 'each counts as an '
                      'object of its own')
        for number, annotation in enumerate(annotations, 1):
            annotation.update(id=number, iscrowd=annotation.get('iscrowd') or 0)


def warn_repeated(entries: Sequence[dict], field: str, path: str, effect: str) -> None:
    """Warn of entries with the same value of a field."""
    values = Counter(repr(entry[field]) for entry in entries)
    if len(values) < len(entries):
        value, times = values.most_common(1)[0]
        warn_once(f'ann_file {path} has {times} entries with {field} {value}: {effect}.')


def check_part(coco: dict, part: str, path: str) -> None:
    """Raise a ConfigError unless a part of the file is a list of entries with valid fields."""
    entries = coco.get(part)
    if type(entries) is not list or not set(map(type, entries)) <= {dict}:
        raise ConfigError(f"ann_file {path}: {part} must be a list of objects, COCO's format.")
    for field, required in FIELDS[part].items():
        is_text = bool(entries) and type(entries[0].get(field)) is str
        what, fits = required or (TEXT if is_text else FINITE)
        wrong = [entry for entry in entries if not fits(entry.get(field))]
        if wrong:
            found = reprlib.repr(wrong[0][field]) if field in wrong[0] else 'missing'
            raise ConfigError(
                f'ann_file {path}: {field!r} must be {what} and is {found} in {len(wrong)} of '
                f'{len(entries)} {part}, first in id {wrong[0].get("id")!r}: correct these '
                'entries or leave them out.')
    ids = Counter(entry['id'] for entry in entries if part != 'annotations')
    if len(ids) < sum(ids.values()):
        (twice, times), = ids.most_common(1)
        raise ConfigError(f'ann_file {path} has {times} {part} with id {twice!r}: give each an id '
                          'of its own.')


def check_objects(coco: dict, path: str, scored: bool, masks: str) -> None:
    """Raise a ConfigError or warn for faults; an annotation counts for its first fault alone."""
    annotations, nowhere = coco['annotations'], (np.nan, np.nan)
    by_id = {image['id']: (image['width'], image['height']) for image in coco['images']}
    boxes, areas, sizes = (np.array(values, np.float64) for values in zip(*(
        (x['bbox'], x['area'], by_id.get(x['image_id'], nowhere)) for x in annotations)))
    if (np.abs(boxes) <= 1).all():
        raise ConfigError(f'ann_file {path}: every bbox is in fractions of the image, from -1 to '
                          '1: write left, top, width, height in pixels.')
    rest = np.ones(len(annotations), bool)
    with np.errstate(invalid='ignore', over='ignore', divide='ignore'):
        of_boxes = list(box_faults(boxes, areas, sizes, scored))
    of_masks = mask_faults(annotations, sizes, masks == 'scored') if masks else []
    for fault in of_masks + of_boxes if scored else of_boxes + of_masks:
        found = fault.found & rest
        if not found.any():
            continue
        if fault.effect:
            rest &= ~found
        first = int(found.argmax())
        shown = (f'{int(found.sum())} of {len(found)} annotations of ann_file {path} '
                 f'{fault.what}, first id {annotations[first].get("id")!r} (bbox '
                 f'{boxes[first].tolist()}, area {float(areas[first])})')
        if fault.refused:
            raise ConfigError(f'{shown}: correct them or leave them out of the file.')
        warn_once(f'{shown}{fault.effect}.')


def box_faults(boxes: np.ndarray, areas: np.ndarray, sizes: np.ndarray,
               scored: bool) -> Iterator[Fault]:
    """Yield faults of boxes.

    Args:
        boxes (ndarray): Left, top, width, height in pixels, shape (n, 4).
        areas (ndarray): Shape (n, ).
        sizes (ndarray): Width and height of the images, shape (n, 2), NaN for a missing image.
        scored (bool): As for :func:`check_annotations`.
    """
    starts, extents = boxes[:, :2], boxes[:, 2:]
    inside = np.minimum(starts + extents, sizes) - np.maximum(starts, 0)
    effect = COUNTED if scored else LEFT_OUT
    yield Fault('belong to no image of the file', np.isnan(sizes[:, 0]), effect=LEFT_OUT)
    yield Fault('have a bbox with NaN', np.isnan(boxes).any(1), scored, LEFT_OUT)
    yield Fault('have an infinite bbox', np.isinf(boxes).any(1), True)
    yield Fault(f'have a bbox more than {LARGEST_BOX} times as wide or high as their image',
                (np.abs(extents) > LARGEST_BOX * sizes).any(1), not scored, effect)
    yield Fault('have a bbox without width or height', (extents <= 0).any(1), effect=effect)
    yield Fault('have a bbox outside of their image', (inside <= 0).any(1), effect=effect)
    yield Fault('have an area of 0 or below, or NaN', ~(areas > 0) if scored else areas <= 0,
                effect=effect)
    if not scored:
        yield Fault('are less than a pixel wide or high', (extents < 1).any(1), effect=effect)
    yield Fault('have less than half of their bbox (left, top, width, height) inside the image',
                (inside / extents).prod(1) < 0.5)


def mask_faults(annotations: Sequence[dict], sizes: np.ndarray, scored: bool) -> List[Fault]:
    """Find segmentations that make mmdet or pycocotools fail, or read beyond their end."""
    kinds = np.array([mask_fault(x.get('segmentation'), height, width)
                      for x, (width, height) in zip(annotations, sizes)])
    kinds[np.isnan(sizes[:, 0])] = ''  # of no image
    return [Fault(kind, kinds == kind, scored or kind != NO_POLYGON, LEFT_OUT)
            for kind in (NO_MASK, NO_POLYGON, NO_RLE)]


def mask_fault(segmentation: Any, height: int, width: int) -> str:
    """Return the fault of a segmentation, '' for none; ``height`` and ``width`` of the image."""
    if not segmentation:
        return NO_MASK
    try:
        if type(segmentation) is dict:
            fills = count_pixels(segmentation['counts']) == height * width
            return '' if fills and list(segmentation['size']) == [height, width] else NO_RLE
        if not all(type(polygon) is list for polygon in segmentation):
            return NO_RLE
        if not all(len(polygon) >= 6 for polygon in segmentation):
            mask_utils.frPyObjects(segmentation, 1, 1)
    except Exception:  # pycocotools raises an IndexError, a TypeError or an Exception
        return NO_RLE if type(segmentation) is dict else NO_POLYGON
    return ''


def count_pixels(counts: Union[str, Sequence[int]]) -> int:
    """Return the number of pixels of a run-length encoding, -1 for an invalid text.

    In a compressed text a number has digits of 5 bits, the lowest first; bit 5 marks all digits
    but the last. From the fourth number on, the text has the difference to the number two before.
    """
    if not isinstance(counts, str):
        return sum(counts)
    runs, run, shift = [], 0, 0
    for digit in counts.encode():
        run |= (digit - 48 & 31) << shift
        shift += 5
        if not digit - 48 & 32:
            run -= (digit - 48 & 16 > 0) << shift
            runs.append(run + (runs[-2] if len(runs) > 2 else 0))
            run = shift = 0
    return sum(runs) if not shift and min(runs, default=-1) >= 0 else -1
