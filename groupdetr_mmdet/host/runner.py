"""The runner that a config asks for, with the checks of this package."""
from typing import Any, Dict, Type

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..checkpoints.checked import CheckedWeightsHook
from .preflight import iter_datasets

DATASETS = {name: 'CheckedCocoDataset'
            for name in ('CocoDataset', 'mmdet.CocoDataset', CocoDataset)}
LOADERS = {name: 'CheckedLoadImageFromFile'
           for name in ('LoadImageFromFile', 'mmdet.LoadImageFromFile', LoadImageFromFile)}
FROZEN = 600  # seconds after which processes that wait for another one end the run
HOOKS = {name: 'AtomicCheckpointHook' for name in ('CheckpointHook', CheckpointHook)}
LOOPS = {name: 'ResumableTrainLoop' for name in ('EpochBasedTrainLoop', EpochBasedTrainLoop)}


def build_runner(cfg: Config, default: Type[Runner] = Runner) -> Runner:
    """Build the runner that ``runner_type`` names, mmengine's ``Runner`` by default.

    Where the config has mmdet's ``CocoDataset``, the data set is a ``CheckedCocoDataset``, and a
    ``RunCheckHook`` compares model and data before the first step. In training images are loaded
    by ``CheckedLoadImageFromFile``; a test pipeline keeps the loader that mmdet's inferencer
    looks for. A training gets what :func:`make_resumable` says. Weights that do not fit are
    refused by a ``CheckedWeightsHook``.
    """
    prepare_run(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else default.from_cfg(cfg)
    runner.register_hook(CheckedWeightsHook())
    return runner


def prepare_run(cfg: Config) -> None:
    """Let a config ask for all that :func:`build_runner` adds."""
    check_data(cfg)
    if cfg.get('train_cfg'):
        make_resumable(cfg)
    dist_cfg = cfg.setdefault('env_cfg', {}).setdefault('dist_cfg', dict(backend='nccl'))
    dist_cfg.setdefault('timeout', FROZEN)


def check_data(cfg: Config) -> None:
    """Let a config ask for the checks, where it has the classes that they stand in for."""
    for mode in ('train', 'val', 'test'):
        for _, dataset in iter_datasets(cfg.get(f'{mode}_dataloader'), ''):
            replace_type(dataset, DATASETS)
            if mode == 'train':
                for transform in dataset.get('pipeline') or ():
                    replace_type(transform, LOADERS)
    add_hook(cfg, 'RunCheckHook')


def make_resumable(cfg: Config) -> None:
    """Let a config ask for a training that can be killed and continues as if it had not been.

    Where it has mmengine's ``CheckpointHook``, ``EpochBasedTrainLoop`` and batches, it gets
    ``AtomicCheckpointHook``, ``ResumableTrainLoop`` and ``ResumableBatchSampler``.
    """
    hook = cfg.setdefault('default_hooks', {}).setdefault(
        'checkpoint', dict(type='CheckpointHook', interval=1))
    replace_type(hook, HOOKS)
    loop = cfg.get('train_cfg')
    if loop and loop.get('type') in LOOPS:
        replace_type(loop, LOOPS)
    elif loop and 'type' not in loop and loop.get('by_epoch', True):
        loop.type = 'ResumableTrainLoop'
    if loop and loop.get('type') == 'ResumableTrainLoop':
        loop.pop('by_epoch', None)
    loader = cfg.get('train_dataloader')
    inner = loader and loader.get('batch_sampler')
    if isinstance(loader, dict) and (inner or {}).get('type') != 'ResumableBatchSampler':
        loader.batch_sampler = dict(type='ResumableBatchSampler', batch_sampler=inner,
                                    drop_last=loader.pop('drop_last', False))
    add_hook(cfg, 'ExactResumeHook')
    add_hook(cfg, 'PreemptionHook')


def add_hook(cfg: Config, name: str) -> None:
    """Add a hook to a config that does not have it."""
    hooks = cfg.get('custom_hooks') or []
    if not any(isinstance(hook, dict) and hook.get('type') == name for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type=name)]


def replace_type(part: Any, types: Dict[Any, str]) -> None:
    """Change the type of a part of the config, where it is one of the keys."""
    if isinstance(part, dict) and isinstance(part.get('type'), (str, type)):
        part['type'] = types.get(part['type'], part['type'])
