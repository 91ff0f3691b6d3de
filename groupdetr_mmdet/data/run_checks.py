"""Checks of model and data together, made when a run has built both and before its first step."""
from pathlib import Path
from typing import Any, Iterator

from mmdet.evaluation import CocoMetric, LVISMetric
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ..errors import ConfigError, warn_once
from ..config_check import check_kinds, signature_of
from ..processes import unwrapped

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
        loops = dict(train=runner._train_loop, val=runner._val_loop, test=runner._test_loop)
        classes = {}
        for mode, loop in loops.items():
            if not isinstance(loop, BaseLoop):  # which will not run
                continue
            whole = loop.dataloader.dataset
            for part in getattr(whole, 'datasets', [whole]):
                check_sample(part, model, mode)
            for dataset in leaves(whole):
                check_dataset(dataset, model, mode)
                classes[mode] = getattr(dataset, 'metainfo', {}).get('classes')
                if classes[mode] and classes.get('train') not in (None, classes[mode]):
                    raise ConfigError(
                        f'{mode}_dataloader has the classes {classes[mode]} and train_dataloader '
                        f'{classes["train"]}: give both the same metainfo.classes.')
            for metric in loop.evaluator.metrics if mode != 'train' else ():
                if isinstance(metric, CocoMetric):
                    check_asked(metric, model, mode)
                    check_compared(metric, whole, mode)


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


def check_dataset(dataset: Any, model: Any, mode: str) -> None:
    """Check that a data set is one to train on or to score, with the classes of the head."""
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    if classes is not None and not classes:
        raise ConfigError(f'{mode}_dataloader.dataset.metainfo.classes={classes} is empty: name '
                          'the classes.')
    num_classes = getattr(getattr(model, 'bbox_head', None), 'num_classes', None)
    if classes and num_classes is not None and num_classes != len(classes):
        raise ConfigError(
            f'model.bbox_head.num_classes={num_classes} and the {len(classes)} classes of '
            f'{mode}_dataloader ({", ".join(map(str, classes[:5]))}'
            f'{", ..." if len(classes) > 5 else ""}) differ: set num_classes={len(classes)}, or '
            f'correct metainfo.classes of the dataset.')
    scored = mode != 'train'
    if getattr(dataset, 'test_mode', scored) != scored:
        raise ConfigError(f'{mode}_dataloader.dataset.test_mode={not scored} keeps other images '
                          f'than those to {"score" if scored else "train on"}: set it to '
                          f'{scored}.')
    num_queries, objects = getattr(model, 'num_queries', 0), getattr(dataset, 'most_objects', 0)
    if num_queries and objects > num_queries and not scored:
        warn_once(f'An image of {dataset.ann_file} has {objects} objects, more than '
                  f'model.num_queries={num_queries} can find: raise num_queries.')


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


def check_asked(metric: CocoMetric, model: Any, mode: str) -> None:
    """Check what is asked of a COCO metric, which it looks at when all images are through."""
    finds_masks = getattr(model, 'with_mask', False) or hasattr(model, 'panoptic_head')
    if 'segm' in metric.metrics and hasattr(model, 'bbox_head') and not finds_masks:
        raise ConfigError(f"{mode}_evaluator.metric={metric.metrics} has 'segm', and "
                          f"{type(model).__name__} finds no masks: write metric='bbox'.")
    if metric.format_only:
        return
    if not metric.metrics:
        raise ConfigError(f"{mode}_evaluator.metric is empty: write metric='bbox'.")
    unknown = set(metric.metric_items or ()) - COCO_ITEMS
    if unknown and not isinstance(metric, LVISMetric):  # which has items of its own
        raise ConfigError(f'{mode}_evaluator.metric_items has {min(unknown)!r}: choose from '
                          f'{", ".join(sorted(COCO_ITEMS))}.')


def check_compared(metric: CocoMetric, dataset: Any, mode: str) -> None:
    """Check what a COCO metric compares with: it reads an annotation file of its own."""
    coco, key = metric._coco_api, f'{mode}_evaluator.ann_file'
    if metric.format_only:
        return
    if coco is None:
        if 'instances' not in dataset[0]['data_samples']:  # which would do
            raise ConfigError(f'{key} is missing: name that of {mode}_dataloader.')
        return
    if 'annotations' not in coco.dataset:
        raise ConfigError(f'{key} has no annotations to compare with: name another file, or set '
                          'format_only=True to write the detections only.')
    for part in leaves(dataset):
        for index in range(min(len(part), 100) if hasattr(part, 'get_data_info') else 0):
            sample = part.get_data_info(index)
            known = coco.imgs.get(sample['img_id'], {}).get('file_name', '')
            if Path(known).name != Path(sample['img_path']).name:
                raise ConfigError(
                    f'{key} does not know the image with id {sample["img_id"]!r} of '
                    f'{mode}_dataloader, {sample["img_path"]}: name the same ann_file in both.')
