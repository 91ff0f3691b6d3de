"""Build the runner of a config, with the data, loops and weights of this package."""
import atexit
import contextlib
import copy
import gc
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Type, Union

import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.hooks import CheckpointHook
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS, RUNNERS, WEIGHT_INITIALIZERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.utils import get_object_from_string

from ..checkpoints.loading import CheckedPretrainedInit, CheckedWeightsHook
from ..checkpoints.preemption import shield_workers
from ..checkpoints.reading import checked_readers
from ..config import iter_dicts
from .options import add_hook, checkpoint_hook

TYPES = {  # what stands in a config -> what the run gets
    name: ours for theirs, ours in ((CocoDataset, 'CheckedCocoDataset'),
                                    (LoadImageFromFile, 'CheckedLoadImageFromFile'),
                                    (CocoMetric, 'CheckedCocoMetric'),
                                    (CheckpointHook, 'AtomicCheckpointHook'),
                                    (EpochBasedTrainLoop, 'ResumableTrainLoop'))
    for name in (theirs, theirs.__name__, f'mmdet.{theirs.__name__}')}
METRICS = 'CheckedCocoMetric', 'GroupCocoMetric', 'mmdet.GroupCocoMetric'
FROZEN = 600  # seconds after which processes that wait for another one end the run


class RunConfig(Config):
    """Config of a run; its text stays as it is now, whatever the run changes in the config.

    mmengine writes the text into the log, two files and every checkpoint.

    Args:
        cfg (Config): The config, which is shared and not copied.
        to_files (bool): Whether the run writes the files. Defaults to True.
    """

    def __init__(self, cfg: Config, to_files: bool = True) -> None:
        self.__dict__.update(cfg.__dict__, text_now=cfg.pretty_text, to_files=to_files)

    @property
    def pretty_text(self) -> str:
        """The text."""
        return self.__dict__['text_now']

    def dump(self, file: Union[str, Path, None] = None) -> Optional[str]:
        """Write a file, or return the text."""
        return super().dump(file) if file is None or self.__dict__['to_files'] else None


def for_test(cfg: Config, checkpoint: str) -> RunConfig:
    """Copy a config for a test of a checkpoint, which writes no config."""
    cfg = RunConfig(copy.deepcopy(cfg), to_files=False)
    cfg.update(load_from=checkpoint, resume=False)
    return cfg


def build_runner(cfg: Config, default: Type[Runner] = Runner) -> Runner:
    """Build the runner that ``runner_type`` names, or else of the class ``default``.

    The runner takes the classes of this package instead of the classes in ``TYPES``: data and
    pretrained weights are checked, and a run is resumable. The config is changed. The run
    records it as it is now, a :class:`RunConfig` as it was.
    """
    cfg = cfg if isinstance(cfg, RunConfig) else RunConfig(cfg)
    check_data(cfg)
    dist_cfg = cfg.setdefault('env_cfg', {}).setdefault('dist_cfg', dict(backend='nccl'))
    dist_cfg.setdefault('timeout', FROZEN)
    if cfg.get('launcher', 'none') != 'none' and get_device() == 'cpu':
        use_gloo(cfg, dist_cfg)
    if cfg.get('train_cfg'):
        make_resumable(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else default.from_cfg(cfg)
    for name in {'_init_model_weights', 'load_or_resume'} & {*dir(runner)}:
        setattr(runner, name, with_checked_weights(getattr(runner, name)))
    runner.register_hook(CheckedWeightsHook())
    if cfg.get('train_cfg'):
        shield_workers(runner)
    return runner


@contextlib.contextmanager
def replaced(items: dict, key: str, value: Any) -> Iterator[None]:
    """Let a dict have another item while the block runs."""
    before, items[key] = items[key], value
    try:
        yield
    finally:
        items[key] = before


def with_checked_weights(load: Callable[[], None]) -> Callable[[], None]:
    """Let a function read safely, and let ``Pretrained`` refuse weights that do not fit."""
    def load_checked() -> None:
        initializers = WEIGHT_INITIALIZERS.module_dict
        with replaced(initializers, 'Pretrained', CheckedPretrainedInit), checked_readers():
            load()

    return load_checked


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """``MMDistributedDataParallel`` on a CPU, which has no ``device_ids``."""

    def __init__(self, *args, device_ids: Any = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)


def use_gloo(cfg: Config, dist_cfg: dict) -> None:
    """Join the other processes by gloo: mmengine selects a CUDA device whatever the backend."""
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='CPUDistributedDataParallel', broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False))
    if is_distributed():
        return
    with replaced(vars(torch.cuda), 'set_device', lambda device: None):
        init_dist(cfg.launcher, **dict(dist_cfg, backend='gloo'))
    atexit.register(leave_process_group)


def leave_process_group() -> None:
    """End gloo's threads: a thread that frees a tensor when Python ends aborts the process."""
    if torch.distributed.is_initialized():
        gc.collect()  # models are in reference cycles, and a distributed model holds the group
        torch.distributed.destroy_process_group()
        time.sleep(0.1)  # for the threads of a model that outlives this call


def check_data(cfg: Config) -> None:
    """Put the checked data sets and metrics into a config, and for training the image loader."""
    for _, hook in iter_dicts(cfg.get('custom_hooks'), 'custom_hooks'):
        for transform in hook.get('switch_pipeline') or ():  # of PipelineSwitchHook
            replace_type(transform)
    for mode in ('train', 'val', 'test'):
        datasets = list(datasets_of(cfg.get(f'{mode}_dataloader') or {}))
        for dataset in datasets:
            replace_type(dataset)
            for transform in (dataset.get('pipeline') or ()) if mode == 'train' else ():
                replace_type(transform)
        for _, metric in iter_dicts(cfg.get(f'{mode}_evaluator'), ''):
            replace_type(metric)
            if metric.get('type') in METRICS:
                metric['by_name'] = all(x.get('type') == 'CheckedCocoDataset' for x in datasets)
                # 'cpu' writes into a folder .dist_test, which stays where a run fails.
                metric.setdefault('collect_device', 'gpu')
    add_hook(cfg, type='RunCheckHook')


def datasets_of(cfg: dict) -> Iterator[dict]:
    """Yield the config of every data set inside a loader or a wrapper of data sets."""
    inner = [x for x in (cfg.get('dataset'), *cfg.get('datasets', ())) if isinstance(x, dict)]
    for part in inner:
        yield from datasets_of(part)
    if not inner:
        yield cfg


def make_resumable(cfg: Config) -> None:
    """Let a killed training continue as if it had not been: replace hook, loop and batches."""
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
    add_hook(cfg, type='ExactResumeHook')
    add_hook(cfg, type='PreemptionHook')


def replace_type(part: Any) -> None:
    """Change the type of a part of the config, where it is one of ``TYPES``.

    A config in pure Python is recorded with the full names of its classes.
    """
    kind = part.get('type') if isinstance(part, dict) else None
    if isinstance(kind, str) and '.' in kind and kind not in TYPES:
        kind = get_object_from_string(kind)
    if kind in TYPES:
        part['type'] = TYPES[kind]
