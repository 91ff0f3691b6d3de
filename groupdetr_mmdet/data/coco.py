"""COCO data sets whose faults get a sentence.

mmdet meets them with an assertion, with a ``KeyError``, or not at all: it leaves out what it does
not know, and trains on the rest.
"""
import json
from collections import Counter
from typing import Any, List, Sequence

from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from ..errors import ConfigError, warn_once
from .annotations import check_annotations
from ..blame import failing_library, first_line, frames
from .images import check_files


class CheckedCOCO(COCO):
    """COCO annotations that know every class they are asked for.

    ``name`` is what messages call the file, and ``scored`` says whether it is evaluated on.
    """

    def __init__(self, annotation_file: str, name: str, scored: bool) -> None:
        self.annotation_file, self.scored = name, scored
        super().__init__(annotation_file)

    def createIndex(self) -> None:
        """Check the file that was read, then index it."""
        check_annotations(self.dataset, self.annotation_file, self.scored)
        super().createIndex()

    def get_cat_ids(self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (),
                    cat_ids: Sequence[int] = ()) -> List[int]:
        """Category ids of classes, in the file's order; label i of mmdet is the i-th of them.

        Each class must be exactly one category. mmdet would number the classes that it finds from
        0, and so give boxes the labels of other classes.
        """
        found = super().get_cat_ids(cat_names, sup_names, cat_ids)
        if cat_names:
            in_file = [category['name'] for category in self.load_cats(found)]
            self._check_classes(list(cat_names), in_file)
            self._announce_left_out(set(found))
        return found

    def _check_classes(self, asked: List[str], in_file: List[str]) -> None:
        twice = [name for name, count in Counter(asked).items() if count > 1]
        if twice:
            raise ConfigError(f'metainfo.classes of the dataset names {quoted(twice)} more than '
                              'once: name every class once.')
        wrong = [name for name in asked if in_file.count(name) != 1]
        if wrong:
            categories = [category['name'] for category in self.cats.values()]
            raise ConfigError(
                f'metainfo.classes of the dataset has {quoted(wrong)}, which must be exactly one '
                f'category each of ann_file {self.annotation_file}: it has {quoted(categories)}, '
                f'so correct metainfo=dict(classes=...), and num_classes with it.')
        if asked != in_file:
            warn_once(
                f'Labels follow the categories of {self.annotation_file}, which are in another '
                f'order than metainfo.classes, so names in pictures and tables will be swapped: '
                f'write metainfo=dict(classes=({quoted(in_file)})).')

    def _announce_left_out(self, used: set) -> None:
        counts = Counter(ann['category_id'] for ann in self.anns.values()
                         if ann['category_id'] not in used)
        if counts:
            names = [f'{self.cats[key]["name"] if key in self.cats else f"unlisted id {key}"} '
                     f'({count})' for key, count in counts.most_common()]
            warn_once(f'{sum(counts.values())} of {len(self.anns)} boxes in '
                      f'{self.annotation_file} are left out, since metainfo.classes does not '
                      f'name their category: {quoted(names)}.')


def quoted(names: Sequence[str]) -> str:
    """Write out a list of names, the first ten of a long one."""
    more = f' and {len(names) - 10} more' if len(names) > 10 else ''
    return ', '.join(repr(str(name)) for name in names[:10]) + more


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """``CocoDataset`` that says when its annotations do not fit the config.

    A class that the file does not have, fields that COCO requires, and a training set of which
    nothing is left are refused; boxes of other categories are left out, as in the parent, and
    the log says how many.
    """

    @property
    def COCOAPI(self) -> Any:
        """What the parent calls to read its annotation file."""
        return self._read_annotations

    def _read_annotations(self, path: str) -> CheckedCOCO:
        coco = CheckedCOCO(path, name=self.ann_file, scored=self.test_mode)
        self._has_annotations = 'annotations' in coco.dataset
        return coco

    def load_data_list(self) -> List[dict]:
        """Load the annotation file, an entry an image, and check that the images are there.

        Raises:
            ConfigError: If the file is not in COCO's format, a class is not in it, or an entry or
                an image would be trained on or scored wrongly.
        """
        try:
            data_list = super().load_data_list()
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError,
                AssertionError) as error:  # pycocotools wants an object at the top
            raise ConfigError(
                f"ann_file {self.ann_file} is not a JSON file in UTF-8 and COCO's format ({error})"
                ': name the whole file, with images, annotations and categories.') from error
        check_files(data_list, self.ann_file, self.pipeline, every=self.test_mode)
        return data_list

    def filter_data(self) -> List[dict]:
        """Leave out images by ``filter_cfg``, and return the entries that are left.

        Raises:
            ConfigError: If there is nothing to train on or to score: no image is left, or none of
                the objects in the file can be used. A training set all of background, without any
                annotation, is allowed.
        """
        left = super().filter_data()
        small = (self.filter_cfg or {}).get('min_size', 0)
        num_small = sum(min(image['width'], image['height']) < small for image in self.data_list)
        if num_small and not self.test_mode:
            warn_once(f'{num_small} of {len(self.data_list)} images of ann_file {self.ann_file} '
                      f'are left out, since a side is below filter_cfg.min_size={small} pixels.')
        self.most_objects = max(map(count_objects, left), default=0)
        annotated = self._has_annotations if self.test_mode else any(self.cat_img_map.values())
        if annotated and not self.most_objects or not self.test_mode and not left:
            usable = sum(count_objects(image) > 0 for image in self.data_list)
            raise ConfigError(
                f'ann_file {self.ann_file} leaves nothing to '
                f'{"score" if self.test_mode else "train on"}: of its {len(self.data_list)} '
                f'images {usable} have a usable box (of a class in metainfo.classes, no crowd, '
                f'inside the image, at least a pixel wide and high, with an area) and {len(left)} '
                f'are left by filter_cfg={self.filter_cfg}; correct the file, metainfo.classes or '
                'filter_cfg.')
        return left

    def prepare_data(self, idx: int) -> Any:
        """Run an image through the pipeline, and name a library's transform that fails on it."""
        try:
            return super().prepare_data(idx)
        except Exception as error:
            if isinstance(error, ConfigError) or not isinstance(error, KeyError) and \
                    failing_library(error) is None:
                raise
            image = self.get_data_info(idx)
            owners = [frame.f_locals.get('self') for frame in frames(error)]
            step = [x for x in owners if isinstance(x, BaseTransform)][-1]
            scale = f' to scale={step.scale}' if getattr(step, 'scale', None) else ''
            raise ConfigError(
                f'Image {image["img_path"]} of {image["width"]} x {image["height"]} pixels cannot '
                f'go through {type(step).__name__}{scale} of the pipeline '
                f'({type(error).__name__}: {first_line(error)}): correct the pipeline, or leave '
                'the image out of ann_file.') from error


def count_objects(image: dict) -> int:
    """Count the boxes that are trained on or scored, which those of crowds are not."""
    return sum(not instance['ignore_flag'] for instance in image['instances'])
