"""Detect objects in folders of images, with mmdet's ``DetInferencer``."""
import copy
import glob
import json
import os.path as osp
import re
from collections import defaultdict
from pathlib import Path, PurePath
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import mmcv
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.apis import DetInferencer
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import FUNCTIONS
from mmengine.structures import InstanceData
from torch import nn

from ..checkpoints.convert import COCO_IDS
from ..checkpoints.loading import load_weights
from ..checkpoints.reading import read_checkpoint
from ..config import datasets_of
from ..data.images import check_whole, fault
from ..errors import ConfigError, first_line
from ..io import check_path


def find_images(inputs: Sequence[str]) -> List[str]:
    """Return the images of files, folders and glob patterns, each once.

    A folder stands for its image files, or, without image files, for the image files of all
    folders inside. In a pattern ``**`` is any number of folders. The order is that of ``inputs``;
    the images of an input are sorted.

    Raises:
        ConfigError: If an input has no image.
    """
    images: Dict[str, str] = {}
    for name in inputs:
        if osp.isdir(name):
            folder = glob.escape(name)
            found = match_images(osp.join(folder, '*')) or match_images(osp.join(folder, '**/*'))
        elif '://' in name or osp.exists(name) or not glob.has_magic(name):
            found = [name]
        else:
            found = match_images(name)
        if not found:
            raise ConfigError(f'INPUT {name} has no image: name files, folders or patterns of '
                              f'{", ".join(IMG_EXTENSIONS)}.')
        for path in found:
            images.setdefault(osp.abspath(path), path)
    return list(images.values())


def match_images(pattern: str) -> List[str]:
    """Return the image files that match a glob pattern, sorted."""
    return sorted(path for path in glob.glob(pattern, recursive=True)
                  if path.lower().endswith(IMG_EXTENSIONS) and not osp.isdir(path))


def class_names(cfg: Config, checkpoint: Dict[str, Any]) -> List[str]:
    """Return the class names of a checkpoint or else of the data set, by label.

    Raises:
        ConfigError: If their number differs from the model's.
    """
    saved = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    names = {key.lower(): value for key, value in saved.items()}.get('classes')
    if not names:
        dataset = next(datasets_of(cfg.test_dataloader))
        meta = dict(DATASETS.get(dataset.type).METAINFO, **dataset.get('metainfo', {}))
        names = {key.lower(): value for key, value in meta.items()}['classes']
    names = list(names)
    head = cfg.model.get('bbox_head')
    num_classes = head.get('num_classes') if isinstance(head, dict) else None
    if num_classes and len(names) != num_classes:
        raise ConfigError(f'model.bbox_head.num_classes={num_classes}, and there are {len(names)} '
                          f'class names ({", ".join(names[:3])}, ...): use a checkpoint and a '
                          'test_dataloader.dataset.metainfo.classes of the same classes.')
    return names


class Inferencer(DetInferencer):
    """``DetInferencer`` that loads weights strictly and continues after an unreadable image.

    Args:
        cfg (Config): Config of the detector.
        weights (str): Path or URL of its checkpoint.
        device (str, optional): Defaults to the best device.

    Attributes:
        classes (list[str]): Class names by label.
        failed (dict[str, str]): Path of each skipped image -> reason.
    """

    def __init__(self, cfg: Config, weights: str, device: Optional[str] = None) -> None:
        self.failed: Dict[str, str] = {}
        self._weights, self._checkpoint = weights, read_checkpoint(weights)
        cfg = copy.deepcopy(cfg)
        cfg.visualizer = dict(cfg.get('visualizer') or dict(type='DetLocalVisualizer'),
                              vis_backends=[])  # pictures are written by `draw`
        for step in cfg.test_dataloader.dataset.pipeline:  # the parent looks for the short name
            kind = TRANSFORMS.get(step.type) if isinstance(step.type, str) else step.type
            step.type = kind.__name__ if kind is LoadImageFromFile else step.type
        super().__init__(cfg, device=device, show_progress=False)
        self.classes = list(self.model.dataset_meta['classes'])

    def _init_collate(self, cfg: Config) -> Callable:
        # The parent would warn that mmdet has no registry of functions.
        collate_fn = cfg.test_dataloader.get('collate_fn', {})
        return FUNCTIONS.get(collate_fn.get('type', 'pseudo_collate'))

    def _load_weights_to_model(self, model: nn.Module, checkpoint: None, cfg: Config) -> None:
        load_weights(model, self._checkpoint, self._weights)
        meta = dict(dataset_meta=dict(classes=class_names(cfg, self._checkpoint)))
        super()._load_weights_to_model(model, dict(meta=meta, state_dict=model.state_dict()), cfg)
        meta = model.dataset_meta
        if isinstance(meta['palette'], list) and len(meta['palette']) < len(meta['classes']):
            meta['palette'] = 'random'  # more classes than CocoDataset's 80 colors

    def detect(self, paths: Sequence[str]) -> Iterator[Tuple[str, DetDataSample]]:
        """Yield path and detections of each image of a batch; add skipped images to ``failed``."""
        batch = []
        for path in paths:
            try:
                check_whole(path)
                batch.append((path, self.pipeline(path)))
            except Exception as error:
                self.failed[path] = fault(path, error)
        if not batch:
            return
        readable, data = self.collate_fn(batch)
        try:
            found = zip(readable, self.forward(data))
        except Exception as error:  # such as fewer feature points than queries
            if len(batch) == 1:
                self.failed[readable[0]] = first_line(error)
                return
            found = (x for path in readable for x in self.detect([path]))  # needs less memory
        yield from found

    def draw(self, path: str, sample: DetDataSample, out_file: str) -> None:
        """Draw detections into a copy of their image, and write it to ``out_file``.

        An image that has no colors to draw, and that only the pipeline reads, is in ``failed``.
        """
        try:
            image = mmcv.imread(path, channel_order='rgb')
        except Exception as error:
            self.failed[path] = f'there is no picture, {fault(path, error)}'
            return
        self.visualizer.add_datasample(path, image, sample, draw_gt=False, pred_score_thr=0)
        mmcv.imwrite(self.visualizer.get_image()[..., ::-1], out_file,
                     backend_args=dict(backend='atomic_local'))


def filtered(instances: InstanceData, score_thr: float, labels: Sequence[int]) -> InstanceData:
    """Keep detections of ``labels`` with scores of at least ``score_thr``."""
    chosen = torch.isin(instances.labels, instances.labels.new_tensor(labels))
    return instances[chosen & (instances.scores >= score_thr)]


def find_labels(names: Sequence[str], classes: Sequence[str]) -> List[int]:
    """Return the labels of class names, all labels without names.

    Raises:
        ConfigError: If a name is unknown.
    """
    unknown = [name for name in names if name not in classes]
    if unknown:
        raise ConfigError(f'--classes {unknown[0]} is not one of the classes: choose from '
                          f'{", ".join(classes)}.')
    return [classes.index(name) for name in names] or list(range(len(classes)))


class CocoIds:
    """Ids of images, by path, and of categories, by label, for COCO's results format.

    Without ``ann_file``, the id of an image is its name if all names are different numbers, as in
    COCO, else its position from 1. The id of a category is COCO's for COCO's classes, else its
    label plus 1.

    Args:
        classes (Sequence[str]): Class names by label.
        paths (Sequence[str]): All images.
        ann_file (str, optional): COCO annotations with the ids of images and categories.
    """

    def __init__(self, classes: Sequence[str], paths: Sequence[str],
                 ann_file: Optional[str] = None) -> None:
        if ann_file:
            self.images, self.categories = annotated_ids(classes, paths, ann_file)
            return
        stems = [Path(path).stem for path in paths]
        is_number = len({int(x) for x in stems if re.fullmatch(r'[0-9]+', x)}) == len(stems)
        self.images = dict(zip(paths, map(int, stems) if is_number else range(1, len(paths) + 1)))
        is_coco = tuple(classes) == CocoDataset.METAINFO['classes']
        self.categories = COCO_IDS if is_coco else range(1, len(classes) + 1)

    def results(self, path: str, instances: InstanceData) -> List[Dict[str, Any]]:
        """Return the detections of an image, boxes as (x, y, width, height) in pixels."""
        boxes = instances.bboxes.cpu()
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        columns = (x.tolist() for x in (instances.labels, boxes, instances.scores))
        return [dict(image_id=self.images[path], category_id=self.categories[label], bbox=box,
                     score=score, file_name=Path(path).name)
                for label, box, score in zip(*columns)]


def annotated_ids(classes: Sequence[str], paths: Sequence[str],
                  ann_file: str) -> Tuple[Dict[str, int], Sequence[int]]:
    """Return the ids of images, by path, and of categories, by label, in annotations.

    Images are found by name, and among equal names by the last folders of the path.

    Raises:
        ConfigError: If an image or class is missing, or an image is not unique.
    """
    check_path('--ann-file', ann_file)
    named = defaultdict(list)  # name of an image -> its folders, innermost first, and its id
    try:
        coco = json.loads(Path(ann_file).read_text())
        for image in coco['images']:
            *folders, name = PurePath(image['file_name']).parts
            named[name].append((folders[::-1], image['id']))
        categories = {x['name']: x['id'] for x in coco['categories']}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'--ann-file {ann_file} is not in COCO format ({error!r}): name a '
                          'file with images and categories, or leave it out.') from error
    lacking = ([path for path in paths if Path(path).name not in named] +
               [name for name in classes if name not in categories])
    if lacking:
        raise ConfigError(f'--ann-file {ann_file} has no {lacking[0]}: name the annotations '
                          'of these images and classes, or leave it out.')
    images: Dict[str, int] = {}
    taken = set()
    for path in paths:
        *folders, name = PurePath(osp.abspath(path)).parts
        shared = {i: len(osp.commonprefix([own, folders[::-1]])) for own, i in named[name]}
        best = [i for i, count in shared.items() if count == max(shared.values())]
        if len(best) > 1 or best[0] in taken:
            raise ConfigError(f'--ann-file {ann_file} does not determine which image {path} '
                              'is: keep the folders of file_name, or leave it out.')
        images[path] = best[0]
        taken.add(best[0])
    return images, [categories[name] for name in classes]
