"""Checks of model and data together, made when a run has built both and before its first step."""
import logging
from typing import Any, Iterator, Optional, Tuple

from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ..errors import ConfigError
from .annotations import check_annotations
from .processes import unwrapped


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
        classes_of_training = None
        for mode, loop in built_loops(runner):
            for dataset in leaves(loop.dataloader.dataset):
                classes = dataset.metainfo.get('classes') if hasattr(dataset, 'metainfo') else None
                check_num_classes(model, classes, mode)
                if mode == 'train':
                    classes_of_training = classes
                    warn_of_few_queries(model, dataset)
                elif classes and classes_of_training and classes != classes_of_training:
                    raise ConfigError(
                        f'{mode}_dataloader has the classes {classes} and train_dataloader '
                        f'{classes_of_training}: give both the same metainfo.classes.')
            if mode != 'train':
                check_metrics(loop.evaluator, loop.dataloader.dataset, mode)


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


def check_num_classes(model: Any, classes: Optional[tuple], mode: str) -> None:
    """Refuse a head whose number of classes is not that of the data."""
    num_classes = getattr(getattr(model, 'bbox_head', None), 'num_classes', None)
    if classes and num_classes is not None and num_classes != len(classes):
        raise ConfigError(
            f'model.bbox_head.num_classes={num_classes} and the {len(classes)} classes of '
            f'{mode}_dataloader ({", ".join(map(str, classes[:5]))}'
            f'{", ..." if len(classes) > 5 else ""}) differ: set num_classes={len(classes)}, or '
            f'correct metainfo.classes of the dataset.')


def warn_of_few_queries(model: Any, dataset: Any) -> None:
    """Warn where an image has more objects than a group has queries."""
    num_queries = getattr(model, 'num_queries', None)
    most_objects = getattr(dataset, 'most_objects', 0)
    if num_queries and most_objects > num_queries:
        print_log(f'An image of {dataset.ann_file} has {most_objects} objects, more than '
                  f'model.num_queries={num_queries} can find: raise num_queries.',
                  logger='current', level=logging.WARNING)


def check_metrics(evaluator: Evaluator, dataset: Any, mode: str) -> None:
    """Check what a COCO metric compares with: it reads an annotation file of its own."""
    for metric in evaluator.metrics:
        coco = getattr(metric, '_coco_api', None)
        if coco is None or metric.format_only:
            continue
        name = f'{mode}_evaluator.ann_file'
        check_annotations(coco.dataset, f'of {mode}_evaluator', scored=True)
        if 'annotations' not in coco.dataset:
            raise ConfigError(f'{name} has no annotations to compare with: name another file, or '
                              'set format_only=True to write the detections only.')
        ids = {sample['img_id'] for part in leaves(dataset) if hasattr(part, 'get_data_info')
               for sample in map(part.get_data_info, range(min(len(part), 100)))}
        unknown = sorted(ids - set(coco.imgs), key=str)
        if unknown:
            raise ConfigError(f'{name} does not know the image with id {unknown[0]!r} of '
                              f'{mode}_dataloader: name the same ann_file in both.')
