"""Checks of a COCO annotation file, before pycocotools or mmdet read it.

Annotations that make a result meaningless are refused. All others are kept, with one warning for
each kind: a training leaves out what mmdet leaves out, and an evaluation counts what pycocotools
counts.
"""
import math
import reprlib
from collections import Counter
from typing import Any, Iterator, List, NamedTuple, Sequence, Union

import numpy as np
from pycocotools import mask as mask_utils

from ..errors import ConfigError, warn_once


def is_number(value: Any) -> bool:
    """Whether a value is a number that float64 can hold; also NaN and infinity."""
    return type(value) is float or type(value) is int and abs(value) < 2**63


TEXT = 'a text', lambda x: type(x) is str
FINITE = 'a finite number', lambda x: is_number(x) and math.isfinite(x)
PIXELS = 'a number of pixels', lambda x: is_number(x) and 1 <= x < math.inf
FILE = 'the name of a file', lambda x: type(x) is str and bool(x.strip()) and '\0' not in x
BOX = 'four numbers, left, top, width, height in pixels', lambda x: (
    type(x) is list and len(x) == 4 and all(map(is_number, x)))
ID = None  # a text where the first one is a text, and else a finite number
FIELDS = {  # of each part: the fields that are needed, what they are, and the test of it
    'images': dict(id=ID, file_name=FILE, width=PIXELS, height=PIXELS),
    'annotations': dict(image_id=ID, category_id=ID, bbox=BOX, area=('a number', is_number),
                        iscrowd=('0, or 1 for a crowd', lambda x: x in (0, 1))),
    'categories': dict(id=ID, name=TEXT),
}
LARGEST = 10  # times its image: no annotation tool draws a wider box


class Fault(NamedTuple):
    """A kind of annotation that is refused or that gets a warning."""
    what: str  # the end of 'N annotations ...'
    found: np.ndarray  # which annotations have it, bools of shape (n,)
    refused: bool = False
    effect: str = ''  # the end of the warning


def check_annotations(coco: dict, path: str, scored: bool, masks: str = '') -> None:
    """Check the content of an annotation file, and number its annotations from 1, in place.

    pycocotools never counts an annotation with id 0 as found and needs numbers. Annotations
    without ``iscrowd`` get 0.

    Args:
        coco (dict): Content of the JSON file.
        path (str): Name of the file, for the message.
        scored (bool): Whether the file is evaluated on, and not trained on.
        masks (str): 'loaded' if a pipeline loads segmentations, 'scored' if a metric compares
            them. Defaults to '', for segmentations that are not used.

    Raises:
        ConfigError: If the file is not in COCO's format, or an annotation makes the result
            meaningless. The message names the entry.
    """
    annotations = coco.get('annotations')
    for annotation in annotations if type(annotations) is list else ():
        if type(annotation) is dict and annotation.get('iscrowd') is None:
            annotation['iscrowd'] = 0
    for part in FIELDS:
        if part in coco or part != 'annotations' or not scored:  # a public test set has none
            check_part(coco, part, path)
    if not coco['images']:
        raise ConfigError(f'ann_file {path} has no images: name the file of the whole data set.')
    names = Counter(image['file_name'] for image in coco['images'])
    name, times = names.most_common(1)[0]
    if times > 1:
        warn_once(f'{len(coco["images"]) - len(names)} images of ann_file {path} are listed again '
                  f'under another id, first {name} ({times} times): objects of one entry are '
                  'background in the other.')
    if annotations:
        check_objects(coco, path, scored, masks)
        number_annotations(annotations, path)


def number_annotations(annotations: Sequence[dict], path: str) -> None:
    """Number annotations from 1, in place, and warn of those that have the id of another."""
    ids = Counter(repr(annotation['id']) for annotation in annotations if 'id' in annotation)
    if sum(ids.values()) > len(ids):
        twice, times = ids.most_common(1)[0]
        warn_once(f'ann_file {path} has {times} annotations with id {twice}: each counts as an '
                  'object of its own.')
    for number, annotation in enumerate(annotations, 1):
        annotation['id'] = number


def check_part(coco: dict, part: str, path: str) -> None:
    """Check that a part of the file is a list of entries whose fields are what they must be."""
    entries = coco.get(part)
    if type(entries) is not list or not set(map(type, entries)) <= {dict}:
        raise ConfigError(f"ann_file {path}: {part} must be a list of objects: write the file in "
                          "COCO's format.")
    for field, required in FIELDS[part].items():
        is_text = bool(entries) and type(entries[0].get(field)) is str
        what, fits = required or (TEXT if is_text else FINITE)
        wrong = [entry for entry in entries if not fits(entry.get(field))]
        if wrong:
            shown = f'is {reprlib.repr(wrong[0][field])}' if field in wrong[0] else 'is missing'
            raise ConfigError(
                f'ann_file {path}: {field!r} must be {what}, and {shown} in {len(wrong)} of '
                f'{len(entries)} {part}, first in the one with id {wrong[0].get("id")!r}: correct '
                'them or leave them out.')
    ids = Counter(entry['id'] for entry in entries if part != 'annotations')
    for twice, times in ids.most_common(1):
        if times > 1:
            raise ConfigError(f'ann_file {path} has {times} {part} with id {twice!r}: give each an '
                              'id of its own.')


def check_objects(coco: dict, path: str, scored: bool, masks: str) -> None:
    """Refuse annotations with a fault, or warn of them, each with its first fault alone."""
    annotations = coco['annotations']
    boxes = np.array([annotation['bbox'] for annotation in annotations], np.float64)
    areas = np.array([annotation['area'] for annotation in annotations], np.float64)
    by_id = {image['id']: (image['width'], image['height']) for image in coco['images']}
    sizes = np.array([by_id.get(annotation['image_id'], (np.nan, np.nan))
                      for annotation in annotations], np.float64)
    if (np.abs(boxes) <= 1).all():
        raise ConfigError(f'ann_file {path}: no number of any bbox is above 1, as if boxes were '
                          'fractions of their image: COCO wants left, top, width and height in '
                          'pixels.')
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
                 f'{fault.what}, first the one with id {annotations[first].get("id")!r} (bbox '
                 f'{boxes[first].tolist()}, area {float(areas[first])})')
        if fault.refused:
            raise ConfigError(f'{shown}: correct them or leave them out of the file.')
        warn_once(f'{shown}{fault.effect}.')


def box_faults(boxes: np.ndarray, areas: np.ndarray, sizes: np.ndarray,
               scored: bool) -> Iterator[Fault]:
    """Find boxes that make a result meaningless, that mmdet leaves out or that nobody can find.

    Args:
        boxes (ndarray): Left, top, width and height in pixels, shape (n, 4).
        areas (ndarray): Areas in square pixels, shape (n,).
        sizes (ndarray): Width and height of each one's image, NaN without an image, shape (n, 2).
        scored (bool): Whether boxes are evaluated on, and not trained on.
    """
    starts, extents = boxes[:, :2], boxes[:, 2:]
    inside = np.minimum(starts + extents, sizes) - np.maximum(starts, 0)
    left_out = '; they are left out'
    effect = '; they count, as pycocotools counts them' if scored else left_out
    yield Fault('belong to no image of the file', np.isnan(sizes[:, 0]), effect=left_out)
    yield Fault('have a bbox with NaN', np.isnan(boxes).any(1), scored, left_out)
    yield Fault('have an infinite bbox', np.isinf(boxes).any(1), True)
    yield Fault(f'have a bbox more than {LARGEST} times as wide or high as their image',
                (np.abs(extents) > LARGEST * sizes).any(1), not scored, effect)
    yield Fault('have a bbox without width or height (it is left, top, width, height)',
                (extents <= 0).any(1), effect=effect)
    yield Fault('have a bbox outside of their image (it is left, top, width, height in pixels)',
                (inside <= 0).any(1), effect=effect)
    if scored:
        yield Fault('have an area that is NaN, infinite or below 0',
                    ~((areas >= 0) & (areas < np.inf)), effect=effect)
    else:
        yield Fault('have an area of 0 or below', areas <= 0, effect=effect)
        yield Fault('are less than a pixel wide or high', (extents < 1).any(1), effect=effect)
    yield Fault('have less than half of their bbox inside the image (it is left, top, width, '
                'height)', (inside / extents).prod(1) < 0.5)


def mask_faults(annotations: Sequence[dict], sizes: np.ndarray, scored: bool) -> List[Fault]:
    """Find segmentations that mmdet and pycocotools fail on, or read beyond their end."""
    kinds = np.array([mask_fault(annotation.get('segmentation'), *map(int, size[::-1]))
                      if size[0] == size[0] else '' for annotation, size in
                      zip(annotations, sizes)])
    return [Fault(kind, kinds == kind, scored or kind != NO_POLYGON,
                  '; mmdet leaves such polygons out')
            for kind in (NO_MASK, NO_POLYGON, NO_RLE)]


NO_MASK = 'have no segmentation'
NO_POLYGON = 'have a segmentation without a polygon of at least three corners'
NO_RLE = 'have a segmentation that is neither polygons nor an RLE of the pixels of its image'


def mask_fault(segmentation: Any, height: int, width: int) -> str:
    """The fault of a segmentation of an image, '' for none."""
    if not segmentation:
        return NO_MASK
    if type(segmentation) is list and all(type(polygon) is list for polygon in segmentation):
        if all(len(polygon) >= 6 for polygon in segmentation):
            return ''
        try:
            mask_utils.frPyObjects(segmentation, height, width)
            return ''
        except Exception:  # an IndexError, a TypeError or an Exception
            return NO_POLYGON
    try:
        fills = list(segmentation['size']) == [height, width] and \
            count_pixels(segmentation['counts']) == height * width
    except (KeyError, TypeError, ValueError, AttributeError):
        fills = False
    return '' if fills else NO_RLE


def count_pixels(counts: Union[str, Sequence[int]]) -> int:
    """Number of pixels of a run-length encoding, -1 for a text that is none.

    Compressed runs are numbers of digits of 5 bits, the lowest first; bit 5 of a digit is set but
    for the last, and from the third on a number is the difference to the last but one.
    """
    if not isinstance(counts, str):
        return sum(counts)
    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & 32 == 0)
    if not len(ends) or ends[-1] != len(digits) - 1:
        return -1
    starts = np.r_[0, ends[:-1] + 1]
    lengths = ends - starts + 1
    places = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << 5 * places, starts)
    runs -= (digits[ends] & 16 > 0).astype(np.int64) << 5 * lengths
    for chain in runs[1::2], runs[2::2]:
        np.cumsum(chain, out=chain)
    return int(runs.sum()) if runs.min() >= 0 else -1
