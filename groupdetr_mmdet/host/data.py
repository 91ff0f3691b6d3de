"""Images and annotations whose faults get a sentence.

What a data set gets wrong, mmdet meets with an assertion, with a ``KeyError``, or not at all: it
leaves out what it does not know, and trains on the rest. The classes here are mmdet's own, with
a look at what comes in.
"""
import functools
import json
import logging
import os
from collections import Counter
from typing import List, Optional, Sequence

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.logging import print_log

from ..errors import ConfigError

JPEG_START, JPEG_SCAN, JPEG_END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9'


@TRANSFORMS.register_module()
class CheckedLoadImageFromFile(LoadImageFromFile):
    """``LoadImageFromFile`` of a training pipeline, with a sentence for an unreadable image.

    A file that is missing, empty, cut short or no image stops the training, or, with
    ``ignore_empty=True``, is left out: each process that loads data logs it once, and the
    dataset takes another image in its place.

    A test pipeline keeps ``LoadImageFromFile``, since no image of an evaluation can be left out
    and mmdet's inferencer looks for that name.
    """

    def transform(self, results: dict) -> Optional[dict]:
        """Load an image.

        Args:
            results (dict): Has ``img_path``.

        Returns:
            dict or None: ``results`` with ``img`` (np.ndarray of shape (h, w, 3), BGR),
            ``img_shape`` and ``ori_shape``, both (h, w) in pixels; None for an image to leave
            out.

        Raises:
            ConfigError: If the image cannot be read, unless ``ignore_empty``.
        """
        path = results['img_path']
        try:
            loaded = super().transform(results)
            if loaded is not None and is_cut_short(path):
                raise OSError('its JPEG data has no end')
        except Exception as error:
            if not self.ignore_empty:
                raise ConfigError(
                    f'Image {path} cannot be read ({fault(path, error)}): put the whole image '
                    f'there, correct data_prefix.img or ann_file of the dataset, or train '
                    f'without such images by ignore_empty=True on {type(self).__name__} in the '
                    f'pipeline.') from error
            loaded = None
        if loaded is None:
            warn_once(f'Image {path} cannot be read and is left out, as ignore_empty=True asks.')
        return loaded


def fault(path: str, error: Exception) -> str:
    """Say in a few words what is wrong with an image file."""
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return 'the file is empty'
    if isinstance(error, AssertionError):  # the decoder returned nothing
        return 'it is cut short or not an image'
    return getattr(error, 'strerror', None) or str(error)


def is_cut_short(path: str) -> bool:
    """Whether a local JPEG file ends inside its image.

    OpenCV 4 decodes such a file without an error, and fills the rest of the image with whatever
    was in memory.

    Args:
        path (str): Any file, or the address of one elsewhere, which is not checked.
    """
    if not os.path.isfile(path):
        return False
    with open(path, 'rb') as file:
        if file.read(2) != JPEG_START:
            return False
        file.seek(-2, os.SEEK_END)
        if file.read() == JPEG_END:
            return False
        file.seek(0)
        data = file.read()
    return data.find(JPEG_END, scan_start(data)) < 0


def scan_start(data: bytes) -> int:
    """Offset of a JPEG's first scan, behind the header, whose thumbnail has an end of its own."""
    position = len(JPEG_START)
    while position < len(data) and data[position:position + 2] != JPEG_SCAN:
        position += 2 + int.from_bytes(data[position + 2:position + 4], 'big')
    return position


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, once in a process."""
    print_log(message, logger='current', level=logging.WARNING)


class CheckedCOCO(COCO):
    """COCO annotations that know every class they are asked for.

    Args:
        annotation_file (str, optional): Path of the annotation file.
    """

    def __init__(self, annotation_file: Optional[str] = None) -> None:
        self.annotation_file = annotation_file
        super().__init__(annotation_file)

    def get_cat_ids(self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (),
                    cat_ids: Sequence[int] = ()) -> List[int]:
        """Category ids of classes, in the file's order; label i of mmdet is the i-th of them.

        Raises:
            ConfigError: If a class is not exactly one category. mmdet would number the classes
                that it finds from 0, and so give boxes the labels of other classes.
        """
        found = super().get_cat_ids(cat_names, sup_names, cat_ids)
        if cat_names:
            in_file = [category['name'] for category in self.load_cats(found)]
            self._check_classes(list(cat_names), in_file)
            self._announce_left_out(set(found))
        return found

    def _check_classes(self, asked: List[str], in_file: List[str]) -> None:
        wrong = [name for name in asked if in_file.count(name) != 1]
        if wrong:
            categories = [category['name'] for category in self.cats.values()]
            raise ConfigError(
                f'metainfo.classes of the dataset has {shown(wrong)}, which must be exactly one '
                f'category each of ann_file {self.annotation_file}: it has {shown(categories)}, '
                f'so correct metainfo=dict(classes=...), and num_classes with it.')
        if asked != in_file:
            warn_once(
                f'Labels follow the categories of {self.annotation_file}, which are in another '
                f'order than metainfo.classes, so names in pictures and tables will be swapped: '
                f'write metainfo=dict(classes=({shown(in_file)})).')

    def _announce_left_out(self, used: set) -> None:
        counts = Counter(ann['category_id'] for ann in self.anns.values()
                         if ann['category_id'] not in used)
        if counts:
            names = [f'{self.cats[key]["name"] if key in self.cats else f"unlisted id {key}"} '
                     f'({count})' for key, count in counts.most_common()]
            warn_once(f'{sum(counts.values())} of {len(self.anns)} boxes in '
                      f'{self.annotation_file} are left out, since metainfo.classes does not '
                      f'name their category: {shown(names)}.')


def shown(names: Sequence[str], limit: int = 10) -> str:
    """Write out a list of names, the first few of a long one."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(repr(str(name)) for name in names[:limit]) + more


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """``CocoDataset`` that says when its annotations do not fit the config.

    A class that the file does not have, fields that COCO requires, and a training set of which
    nothing is left are refused; boxes of other categories are left out, as in the parent, and
    the log says how many.
    """
    COCOAPI = CheckedCOCO

    def load_data_list(self) -> List[dict]:
        """Load the annotation file.

        Returns:
            List[dict]: One entry an image.

        Raises:
            ConfigError: If the file is not in COCO's format, or a class is not in it.
        """
        try:
            return super().load_data_list()
        except json.JSONDecodeError as error:
            raise ConfigError(f'ann_file {self.ann_file} is not valid JSON ({error}): name the '
                              f'whole file.') from error
        except KeyError as error:
            raise ConfigError(
                f'ann_file {self.ann_file} lacks the field {error} in an entry: COCO requires '
                f'id, file_name, height and width of an image; id, image_id, category_id, bbox '
                f'and area of an annotation; id and name of a category.') from error

    def filter_data(self) -> List[dict]:
        """Leave out images by ``filter_cfg``.

        Returns:
            List[dict]: The entries that are left.

        Raises:
            ConfigError: If there is nothing to train on: no image is left, or the file has boxes
                and none of them can be used. Images all without boxes are background, and
                allowed.
        """
        left = super().filter_data()
        annotated = any(self.cat_img_map.values())
        if not self.test_mode and (
                not left or annotated and not any(image['instances'] for image in left)):
            usable = sum(bool(image['instances']) for image in self.data_list)
            raise ConfigError(
                f'ann_file {self.ann_file} leaves nothing to train on: of its '
                f'{len(self.data_list)} images {usable} have a usable box (of a class in '
                f'metainfo.classes, inside the image, at least a pixel wide and high, with an '
                f'area) and {len(left)} are left by filter_cfg={self.filter_cfg}; correct the '
                f'file, metainfo.classes or filter_cfg.')
        return left
