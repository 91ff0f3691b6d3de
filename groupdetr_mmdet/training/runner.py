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
from ..config import datasets_of, iter_dicts
from .options import add_hook, checkpoint_hook

TYPES = {  # type in a config -> type in the run
    name: ours for theirs, ours in ((CocoDataset, 'CheckedCocoDataset'),
                                    (LoadImageFromFile, 'CheckedLoadImageFromFile'),
                                    (CocoMetric, 'CheckedCocoMetric'),
                                    (CheckpointHook, 'AtomicCheckpointHook'),
                                    (EpochBasedTrainLoop, 'ResumableTrainLoop'))
    for name in (theirs, *(f'{scope}{theirs.__name__}' for scope in ('', 'mmdet.', 'mmengine.')))}
METRICS = 'CheckedCocoMetric', 'GroupCocoMetric', 'mmdet.GroupCocoMetric'
HANG_TIMEOUT = 600  # seconds until a run ends if a process hangs


class RunConfig(Config):
    """Config of a run, whose text stays the same when the run changes the config.

    mmengine writes the text into the log, two files and every checkpoint.

    Args:
        cfg (Config): The config, shared and not copied.
        to_files (bool): Whether the run writes the files. Defaults to True.
    """

    def __init__(self, cfg: Config, to_files: bool = True) -> None:
        self.__dict__.update(cfg.__dict__, text_now=cfg.pretty_text, to_files=to_files)

    @property
    def pretty_text(self) -> str:
        """Text of the config when this was made."""
        return self.__dict__['text_now']

    def dump(self, file: Union[str, Path, None] = None) -> Optional[str]:
        """Write the text to a file, in JSON or YAML what it sets, or return it."""
        if file is not None and not self.__dict__['to_files']:
            return None
        as_given = str(file or '.py').endswith('.py')
        return (super() if as_given else Config.fromstring(self.pretty_text, '.py')).dump(file)


def for_test(cfg: Config, checkpoint: str) -> RunConfig:
    """Copy a config for a test of ``checkpoint``, which writes no config files."""
    cfg = RunConfig(copy.deepcopy(cfg), to_files=False)
    cfg.update(load_from=checkpoint, resume=False)
    return cfg


def build_runner(cfg: Config, default: Type[Runner] = Runner) -> Runner:
    """Build the runner that ``runner_type`` names, by default a ``default``.

    Replaces types in the config, in place, by the classes of this package in ``TYPES``: data and
    weights are checked, and the run is resumable. The run records the config as given, a
    :class:`RunConfig` with its own text.
    """
    cfg = cfg if isinstance(cfg, RunConfig) else RunConfig(cfg)
    check_data(cfg)
    env_cfg = cfg.get('env_cfg') or {}
    dist_cfg = dict(dict(backend='nccl', timeout=HANG_TIMEOUT), **(env_cfg.get('dist_cfg') or {}))
    cfg.env_cfg = dict(env_cfg, dist_cfg=dist_cfg)
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
    """Replace an item of a dict inside a ``with`` block."""
    before, items[key] = items[key], value
    try:
        yield
    finally:
        items[key] = before


def with_checked_weights(load: Callable[[], None]) -> Callable[[], None]:
    """Wrap a function, so that it reads checkpoints safely and checks ``Pretrained``."""
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
    """Initialize gloo; mmengine would select a CUDA device with any backend."""
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
    """End gloo's threads: a thread that frees a tensor at exit would abort the process."""
    if torch.distributed.is_initialized():
        gc.collect()  # distributed models in reference cycles hold the group
        torch.distributed.destroy_process_group()
        time.sleep(0.1)  # for the threads of models still alive


def check_data(cfg: Config) -> None:
    """Replace data sets, metrics and, for training, image loaders by the checked classes."""
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
                # 'cpu' would write into a folder .dist_test, which stays if a run fails.
                metric.setdefault('collect_device', 'gpu')
    add_hook(cfg, type='RunCheckHook')


def make_resumable(cfg: Config) -> None:
    """Replace checkpoint hook, loop and batch sampler, so that a run resumes exactly."""
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
    """Replace the type of a part of the config if it is in ``TYPES``.

    A recorded config in pure Python has the full names of its classes.
    """
    kind = part.get('type') if isinstance(part, dict) else None
    if isinstance(kind, str) and '.' in kind and kind not in TYPES:
        kind = get_object_from_string(kind)
    if kind in TYPES:
        part['type'] = TYPES[kind]
