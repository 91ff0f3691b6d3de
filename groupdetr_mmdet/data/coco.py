"""COCO data sets and metrics whose labels follow the names of the classes.

mmdet numbers classes in the order of each annotation file. Here label i is the category called
``metainfo.classes[i]``, whatever the order in the file.
"""
import json
import reprlib
from collections import Counter
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.fileio import get_local_path

from ..errors import ConfigError, warn_once
from .annotations import check_annotations
from .images import check_files

shown = reprlib.Repr()
shown.maxlist = 10
shown.maxstring = 60


class CheckedCOCO(COCO):
    """COCO annotations with checks; arguments as for :func:`check_annotations`."""

    def __init__(self, file: str, name: str, scored: bool, masks: str = '') -> None:
        self.name, self.scored, self.masks = name, scored, masks
        try:
            super().__init__(file)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError,
                AssertionError) as error:  # pycocotools asserts that the content is a dict
            raise ConfigError(
                f"ann_file {name} is not a JSON file in UTF-8 and COCO's format ({error}): name "
                'the whole file, with images, annotations and categories.') from error

    def createIndex(self) -> None:
        """Check the annotations, then index them."""
        check_annotations(self.dataset, self.name, self.scored, self.masks)
        super().createIndex()

    def get_cat_ids(self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (),
                    cat_ids: Sequence[int] = ()) -> List[int]:
        """Return the category ids of classes, in the order of ``cat_names``; see the parent.

        Raises:
            ConfigError: If the number of categories with a class's name is not 1.
        """
        if not cat_names:
            return super().get_cat_ids(cat_names, sup_names, cat_ids)
        by_name = {category['name']: category['id'] for category in self.dataset['categories']}
        names = Counter(category['name'] for category in self.dataset['categories'])
        wrong = [x for x in cat_names if names[x] != 1 or list(cat_names).count(x) != 1]
        if wrong:
            raise ConfigError(
                f'metainfo.classes of the dataset has {shown.repr(wrong)}, which must each be one '
                f'category of ann_file {self.name}: it has {shown.repr([*names.elements()])}. '
                'Correct metainfo=dict(classes=...) and num_classes.')
        ids = [by_name[name] for name in cat_names]
        left_out = Counter(x['category_id'] for x in self.anns.values()
                           if x['category_id'] not in ids)
        if left_out:
            called = {category_id: name for name, category_id in by_name.items()}
            counts = [f'{called.get(x, f"unlisted id {x}")} ({n})' for x, n in
                      left_out.most_common()]
            warn_once(f'{sum(left_out.values())} of {len(self.anns)} boxes in {self.name} are left'
                      f' out: their categories {shown.repr(counts)} are not in metainfo.classes.')
        return ids


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """``CocoDataset`` with checks of annotations and images, whose labels follow class names.

    Raises:
        ConfigError: If the file is not in COCO's format or lacks a class, an entry or image makes
            the result meaningless, or nothing is left to train on or to score.
    """

    def COCOAPI(self, path: str) -> CheckedCOCO:
        """Read the annotation file; called by the parent."""
        loads = any(getattr(x, 'with_mask', False) for x in self.pipeline.transforms)
        coco = CheckedCOCO(path, self.ann_file, self.test_mode, 'loaded' if loads else '')
        self._has_annotations = 'annotations' in coco.dataset
        return coco

    def load_data_list(self) -> List[dict]:
        """Load the annotation file, and check the image files."""
        data_list = super().load_data_list()
        check_files(data_list, self.ann_file, self.pipeline, every=self.test_mode)
        return data_list

    def filter_data(self) -> List[dict]:
        """Return the images that ``filter_cfg`` keeps.

        A training set may have no annotations at all: all its images are background.
        """
        left = super().filter_data()
        small = (self.filter_cfg or {}).get('min_size', 0)
        num_small = sum(min(image['width'], image['height']) < small for image in self.data_list)
        if num_small and not self.test_mode:
            warn_once(f'{num_small} of {len(self.data_list)} images of ann_file {self.ann_file} '
                      f'are left out: a side is below filter_cfg.min_size={small} pixels.')
        self.most_objects = max(map(count_objects, left), default=0)
        annotated = self._has_annotations if self.test_mode else any(self.cat_img_map.values())
        if annotated and not self.most_objects or not self.test_mode and not left:
            usable = sum(count_objects(image) > 0 for image in self.data_list)
            raise ConfigError(
                f'ann_file {self.ann_file} leaves nothing to '
                f'{"score" if self.test_mode else "train on"}: {usable} of '
                f'{len(self.data_list)} images have a usable box (of a class in metainfo.classes, '
                f'no crowd, inside the image, of a pixel or more), and filter_cfg='
                f'{self.filter_cfg} leaves {len(left)} images: correct the file or filter_cfg.')
        return left


def count_objects(image: dict) -> int:
    """Count the boxes of an image without crowds, which are neither trained nor scored."""
    return sum(not instance['ignore_flag'] for instance in image['instances'])


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """``CocoMetric`` whose labels follow class names, as in :class:`CheckedCocoDataset`.

    With ``by_name=False`` labels follow the order of the file, as in mmdet's ``CocoDataset``.
    """

    def __init__(self, ann_file: Optional[str] = None, by_name: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.by_name = by_name
        self.iou_thrs = np.atleast_1d(self.iou_thrs)  # pycocotools compares an array with numbers
        if ann_file is not None:
            masks = 'scored' if 'segm' in self.metrics else ''
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = CheckedCOCO(path, ann_file, True, masks)
            if kwargs.get('sort_categories'):
                self._coco_api.dataset['categories'].sort(key=lambda category: category['id'])

    def label_categories(self) -> List[int]:
        """Return the category id of each label.

        Raises:
            ConfigError: If ``ann_file`` lacks a class.
        """
        find = CheckedCOCO.get_cat_ids if self.by_name else COCO.get_cat_ids
        return find(self._coco_api, self.dataset_meta['classes'])

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Permute labels, because the parent requires ascending ``cat_ids``, and evaluate."""
        if self._coco_api is not None:
            cat_ids = self.label_categories()
            self.cat_ids = sorted(cat_ids)
            places = np.argsort(np.argsort(cat_ids))
            results = [(gt, dict(result, labels=places[result['labels']]))
                       for gt, result in results]
        return super().compute_metrics(results)
