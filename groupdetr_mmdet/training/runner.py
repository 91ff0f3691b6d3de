"""The runner that a config asks for, with the checks of this package."""
from typing import Any, Iterator, Type

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..checkpoints.loading import CheckedWeightsHook
from ..preflight import iter_datasets
from .options import add_hook, checkpoint_hook

TYPES = {  # what a config says, and what it gets
    name: ours for theirs, ours in ((CocoDataset, 'CheckedCocoDataset'),
                                    (LoadImageFromFile, 'CheckedLoadImageFromFile'),
                                    (CocoMetric, 'CheckedCocoMetric'),
                                    (CheckpointHook, 'AtomicCheckpointHook'),
                                    (EpochBasedTrainLoop, 'ResumableTrainLoop'))
    for name in (theirs, theirs.__name__, f'mmdet.{theirs.__name__}')}
METRICS = 'CheckedCocoMetric', 'GroupCocoMetric', 'mmdet.GroupCocoMetric'
FROZEN = 600  # seconds after which processes that wait for another one end the run


def build_runner(cfg: Config, default: Type[Runner] = Runner) -> Runner:
    """Build the runner that ``runner_type`` names, mmengine's ``Runner`` by default.

    Data, weights and, in training, images are checked: in the place of the classes of ``TYPES``
    there are this package's; a test pipeline keeps the loader that mmdet's inferencer looks for.
    A training gets what :func:`make_resumable` says.
    """
    check_data(cfg)
    if cfg.get('launcher', 'none') != 'none':
        collect_by_messages(cfg)
    if cfg.get('train_cfg'):
        make_resumable(cfg)
    dist_cfg = cfg.setdefault('env_cfg', {}).setdefault('dist_cfg', dict(backend='nccl'))
    dist_cfg.setdefault('timeout', FROZEN)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else default.from_cfg(cfg)
    runner.register_hook(CheckedWeightsHook())
    return runner


def collect_by_messages(cfg: Config) -> None:
    """Let processes send each other their detections, on a CPU, too.

    mmengine's other way writes them into a folder ``.dist_test``, which stays when a run fails.
    """
    for mode in ('val', 'test'):
        for metric in metrics_of(cfg, mode):
            if metric.get('type') in METRICS:
                metric.setdefault('collect_device', 'gpu')


def metrics_of(cfg: Config, mode: str) -> Iterator[dict]:
    """Yield the metrics of an evaluator, also of one that has a list of them."""
    evaluators = cfg.get(f'{mode}_evaluator') or []
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        inner = evaluator.get('metrics', evaluator) if isinstance(evaluator, dict) else ()
        yield from (x for x in (inner if isinstance(inner, (list, tuple)) else [inner])
                    if isinstance(x, dict))


def check_data(cfg: Config) -> None:
    """Let a config ask for the checks, where it has the classes that they stand in for."""
    for mode in ('train', 'val', 'test'):
        datasets = [x for _, x in iter_datasets(cfg.get(f'{mode}_dataloader'), '')]
        for dataset in datasets:
            replace_type(dataset)
            for transform in (dataset.get('pipeline') or ()) if mode == 'train' else ():
                replace_type(transform)
        for metric in metrics_of(cfg, mode):
            replace_type(metric)
            if metric.get('type') in METRICS:
                metric['by_name'] = all(x.get('type') == 'CheckedCocoDataset' for x in datasets)
    add_missing_hook(cfg, 'RunCheckHook')


def make_resumable(cfg: Config) -> None:
    """Let a config ask for a training that can be killed and continues as if it had not been.

    Where it has mmengine's ``CheckpointHook``, ``EpochBasedTrainLoop`` and batches, it gets
    ``AtomicCheckpointHook``, ``ResumableTrainLoop`` and ``ResumableBatchSampler``.
    """
    replace_type(checkpoint_hook(cfg))
    loop = cfg.train_cfg
    if 'type' not in loop and loop.get('by_epoch', True):
        loop.type = 'EpochBasedTrainLoop'
    replace_type(loop)
    if loop.get('type') == 'ResumableTrainLoop':
        loop.pop('by_epoch', None)
    loader = cfg.get('train_dataloader')
    inner = loader and loader.get('batch_sampler')
    if isinstance(loader, dict) and (inner or {}).get('type') != 'ResumableBatchSampler':
        loader.batch_sampler = dict(type='ResumableBatchSampler', batch_sampler=inner,
                                    drop_last=loader.pop('drop_last', False))
    add_missing_hook(cfg, 'ExactResumeHook')
    add_missing_hook(cfg, 'PreemptionHook')


def add_missing_hook(cfg: Config, name: str) -> None:
    """Add a hook to a config that does not have it."""
    if not any(isinstance(hook, dict) and hook.get('type') == name
               for hook in cfg.get('custom_hooks') or []):
        add_hook(cfg, type=name)


def replace_type(part: Any) -> None:
    """Change the type of a part of the config, where it is one of ``TYPES``."""
    if isinstance(part, dict) and isinstance(part.get('type'), (str, type)):
        part['type'] = TYPES.get(part['type'], part['type'])
