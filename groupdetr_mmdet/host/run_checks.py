"""Checks of model and data together, made when a run has built both and before its first step."""
import logging
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple

from mmdet.evaluation import CocoMetric, LVISMetric
from mmengine.dataset import BaseDataset
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ..errors import ConfigError
from .annotations import check_annotations
from .config_check import check_kinds, signature_of
from .processes import unwrapped

COCO_ITEMS = {'mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', 'AR@100', 'AR@300', 'AR@1000',
              'AR_s@1000', 'AR_m@1000', 'AR_l@1000'}


@HOOKS.register_module()
class RunCheckHook(Hook):
    """Refuse, before the first step, a model and data that do not fit each other.

    The number of classes of the head is compared with those of the training, validation and test
    data, their classes with each other, the annotations of the metric with the images that are
    evaluated, and the number of queries with the objects in an image.
    """
    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Make the checks, each of which raises a ConfigError."""
        model = unwrapped(runner.model)
        check_parts(model, runner.cfg.get('model') or {}, 'model')
        classes_of_training = None
        for mode, loop in built_loops(runner):
            for part in getattr(loop.dataloader.dataset, 'datasets', [loop.dataloader.dataset]):
                check_sample(part, model, mode)
            for dataset in leaves(loop.dataloader.dataset):
                classes = dataset.metainfo.get('classes') if hasattr(dataset, 'metainfo') else None
                check_num_classes(model, classes, mode)
                scored = mode != 'train'
                if getattr(dataset, 'test_mode', scored) != scored:
                    raise ConfigError(f'{mode}_dataloader.dataset.test_mode={not scored} keeps '
                                      'other images than those to '
                                      f'{"score" if scored else "train on"}: set it to {scored}.')
                if mode == 'train':
                    classes_of_training = classes
                    warn_of_few_queries(model, dataset)
                elif classes and classes_of_training and classes != classes_of_training:
                    raise ConfigError(
                        f'{mode}_dataloader has the classes {classes} and train_dataloader '
                        f'{classes_of_training}: give both the same metainfo.classes.')
            if mode != 'train':
                check_metrics(loop.evaluator, loop.dataloader.dataset, mode)
                check_masks(loop.evaluator, model, mode)


def built_loops(runner: Runner) -> Iterator[Tuple[str, BaseLoop]]:
    """Yield the names and the loops that are about to run."""
    loops = dict(train=runner._train_loop, val=runner._val_loop, test=runner._test_loop)
    yield from ((mode, loop) for mode, loop in loops.items() if isinstance(loop, BaseLoop))


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    for part in inner:
        if part is None:
            yield dataset
        else:
            yield from leaves(part)


def check_parts(module: nn.Module, cfg: dict, key: str) -> None:
    """Check the kinds of the values of those parts whose type the detector knows."""
    for name, value in cfg.items():
        layers = name == 'layer_cfg' and getattr(module, 'layers', None)
        part = layers[0] if layers else getattr(module, name.replace('_cfg', ''), None)
        if isinstance(value, dict) and isinstance(part, nn.Module) and 'type' not in value:
            check_kinds(f'{key}.{name}', value, signature_of(type(part))[0])
            check_parts(part, value, f'{key}.{name}')


def check_num_classes(model: Any, classes: Optional[tuple], mode: str) -> None:
    """Refuse a head whose number of classes is not that of the data."""
    if classes is not None and not classes:
        raise ConfigError(f'{mode}_dataloader.dataset.metainfo.classes={classes} is empty: name '
                          'the classes.')
    num_classes = getattr(getattr(model, 'bbox_head', None), 'num_classes', None)
    if classes is not None and num_classes is not None and num_classes != len(classes):
        raise ConfigError(
            f'model.bbox_head.num_classes={num_classes} and the {len(classes)} classes of '
            f'{mode}_dataloader ({", ".join(map(str, classes[:5]))}'
            f'{", ..." if len(classes) > 5 else ""}) differ: set num_classes={len(classes)}, or '
            f'correct metainfo.classes of the dataset.')


def check_sample(dataset: Any, model: Any, mode: str) -> None:
    """Check that the pipeline of a data set gives what mmdet's detectors take."""
    if not all(isinstance(x, BaseDataset) for x in leaves(dataset)) or not len(dataset):
        return
    sample, key = dataset[0], f'{mode}_dataloader.dataset.pipeline'
    if not isinstance(sample, dict) or not {'inputs', 'data_samples'} <= sample.keys():
        raise ConfigError(f'{key} does not give inputs and data_samples: let it have '
                          'LoadImageFromFile, and end with PackDetInputs.')
    if 'img_shape' not in sample['data_samples']:
        raise ConfigError(f'{key} does not keep img_shape: name it in meta_keys of PackDetInputs.')
    objects = sample['data_samples'].get('gt_instances', ())
    if mode == 'train' and hasattr(model, 'bbox_head') and not (
            'labels' in objects and 'bboxes' in objects):
        raise ConfigError(f'{key} gives no boxes to train on: let it have LoadAnnotations with '
                          'with_bbox=True.')


def check_masks(evaluator: Evaluator, model: Any, mode: str) -> None:
    """Check that masks are measured of detectors that find them."""
    for metric in evaluator.metrics:
        if isinstance(metric, CocoMetric) and 'segm' in metric.metrics and \
                hasattr(model, 'bbox_head') and not hasattr(model, 'panoptic_head') and \
                not getattr(model, 'with_mask', False):
            raise ConfigError(f"{mode}_evaluator.metric={metric.metrics} has 'segm', and "
                              f"{type(model).__name__} finds no masks: write metric='bbox'.")


def warn_of_few_queries(model: Any, dataset: Any) -> None:
    """Warn where an image has more objects than a group has queries."""
    num_queries = getattr(model, 'num_queries', None)
    most_objects = getattr(dataset, 'most_objects', 0)
    if num_queries and most_objects > num_queries:
        print_log(f'An image of {dataset.ann_file} has {most_objects} objects, more than '
                  f'model.num_queries={num_queries} can find: raise num_queries.',
                  logger='current', level=logging.WARNING)


def check_asked(metric: CocoMetric, mode: str) -> None:
    """Check what is asked of a COCO metric, which it looks at when all images are through."""
    if not metric.metrics:
        raise ConfigError(f"{mode}_evaluator.metric is empty: write metric='bbox'.")
    unknown = set(metric.metric_items or ()) - COCO_ITEMS
    if unknown and not isinstance(metric, LVISMetric):  # which has items of its own
        raise ConfigError(f'{mode}_evaluator.metric_items has {min(unknown)!r}: choose from '
                          f'{", ".join(sorted(COCO_ITEMS))}.')


def check_metrics(evaluator: Evaluator, dataset: Any, mode: str) -> None:
    """Check what a COCO metric compares with: it reads an annotation file of its own."""
    for metric in evaluator.metrics:
        if not isinstance(metric, CocoMetric) or metric.format_only:
            continue
        check_asked(metric, mode)
        coco = metric._coco_api
        if coco is None:
            if 'instances' not in dataset[0]['data_samples']:  # which would do
                raise ConfigError(f'{mode}_evaluator.ann_file is missing: name that of '
                                  f'{mode}_dataloader.')
            continue
        name = f'{mode}_evaluator.ann_file'
        check_annotations(coco.dataset, f'of {mode}_evaluator', scored=True)
        if 'annotations' not in coco.dataset:
            raise ConfigError(f'{name} has no annotations to compare with: name another file, or '
                              'set format_only=True to write the detections only.')
        for part in leaves(dataset):
            for index in range(min(len(part), 100) if hasattr(part, 'get_data_info') else 0):
                sample = part.get_data_info(index)
                known = coco.imgs.get(sample['img_id'], {}).get('file_name', '')
                if Path(known).name != Path(sample['img_path']).name:
                    raise ConfigError(
                        f'{name} does not know the image with id {sample["img_id"]!r} of '
                        f'{mode}_dataloader, {sample["img_path"]}: name the same ann_file in '
                        'both.')
