"""Checks of model and data together, before the first step of a run."""
from pathlib import Path
from typing import Any, Iterator

from mmdet.datasets import XMLDataset
from mmdet.evaluation import CocoMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner

from ..compat import unwrapped
from ..errors import ConfigError, warn_once

NUM_COMPARED = 100  # images of a data set to look up in the annotations of the metric


@HOOKS.register_module()
class RunCheckHook(Hook):
    """Check model, data sets and metrics before the first step of a run.

    Sets ``runner.has_stepped`` after the first step.

    Raises:
        ConfigError: If the result would be meaningless.
    """
    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Check the data sets and metrics of training, validation and test."""
        model, trained = unwrapped(runner.model), None
        loops = dict(train=runner._train_loop, val=runner._val_loop, test=runner._test_loop)
        for mode, loop in loops.items():
            if not isinstance(loop, BaseLoop):  # not part of this run
                continue
            for dataset in leaves(loop.dataloader.dataset):
                check_dataset(dataset, getattr(model, 'student', model), mode)
                classes = list(getattr(dataset, 'metainfo', {}).get('classes') or ())
                if classes and trained not in (None, classes):
                    raise ConfigError(
                        f'{mode}_dataloader has the classes {classes} and train_dataloader '
                        f'{trained}: give both the same metainfo.classes.')
                trained = classes if mode == 'train' and classes else trained
            if mode == 'train':
                continue
            # mmdet >= 3.3: MultiDatasetsEvaluator has a metric for each data set
            of_parts = hasattr(loop.evaluator, 'dataset_prefixes')
            whole, metrics = loop.dataloader.dataset, loop.evaluator.metrics
            for metric, part in zip(metrics, whole.datasets if of_parts else
                                    [whole] * len(metrics)):
                check_compared(metric, part, mode)

    def _after_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        runner.has_stepped = True


def leaves(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``."""
    for part in getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]:
        yield from (dataset, ) if part is None else leaves(part)


def check_dataset(dataset: Any, model: Any, mode: str) -> None:
    """Raise a ConfigError for another number of classes; warn of no or too many objects."""
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    num_classes = getattr(getattr(model, 'bbox_head', None), 'num_classes', None)
    has_text = hasattr(model, 'language_model')  # its classes are words of a text
    if classes is not None and num_classes not in (None, len(classes)) and not has_text:
        raise ConfigError(
            f'model.bbox_head.num_classes={num_classes}, and {mode}_dataloader has {len(classes)} '
            f'classes ({", ".join([*map(str, classes[:5]), "..."][:len(classes)])}): correct '
            'num_classes, or metainfo.classes of the dataset.')
    if mode == 'train' and isinstance(dataset, XMLDataset) and not any(
            dataset.get_data_info(i)['instances'] for i in range(len(dataset))):
        warn_once(f'{mode}_dataloader.dataset has no object of metainfo.classes={classes!r:.60}: '
                  'every image is background.')
    if mode != 'train' and not getattr(dataset, 'test_mode', True):
        warn_once(f'{mode}_dataloader.dataset.test_mode=False leaves out images: set it to True.')
    num_queries, objects = getattr(model, 'num_queries', 0), getattr(dataset, 'most_objects', 0)
    if num_queries and objects > num_queries and mode == 'train':
        warn_once(f'An image of {dataset.ann_file} has {objects} objects, more than '
                  f'model.num_queries={num_queries} can find: raise num_queries.')


def check_compared(metric: Any, dataset: Any, mode: str) -> None:
    """Raise a ConfigError if a COCO metric's annotations lack a class or an evaluated image."""
    coco = getattr(metric, '_coco_api', None)
    if not isinstance(metric, CocoMetric) or coco is None:
        return
    if hasattr(metric, 'label_categories') and metric.dataset_meta:
        metric.label_categories()
    for part in () if metric.format_only else leaves(dataset):
        for index in range(min(len(part), NUM_COMPARED) if hasattr(part, 'get_data_info') else 0):
            sample = part.get_data_info(index)
            known = coco.imgs.get(sample.get('img_id'))
            path = Path(sample['img_path'])
            if known is None or Path(known.get('file_name', path)).name != path.name:
                raise ConfigError(
                    f'{mode}_evaluator.ann_file has no image {path} with id '
                    f'{sample.get("img_id")!r} of {mode}_dataloader: name the same ann_file in '
                    'both.')
