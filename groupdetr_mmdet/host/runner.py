"""The runner that a config asks for, with the checks of this package."""
from typing import Any, Dict, Type

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoints.checked import CheckedWeightsHook
from .preflight import iter_datasets

DATASETS = {name: 'CheckedCocoDataset'
            for name in ('CocoDataset', 'mmdet.CocoDataset', CocoDataset)}
LOADERS = {name: 'CheckedLoadImageFromFile'
           for name in ('LoadImageFromFile', 'mmdet.LoadImageFromFile', LoadImageFromFile)}


def build_runner(cfg: Config, default: Type[Runner] = Runner) -> Runner:
    """Build the runner that ``runner_type`` names, mmengine's ``Runner`` by default.

    Where the config has mmdet's ``CocoDataset``, the data set is a ``CheckedCocoDataset``, and a
    ``RunCheckHook`` compares model and data before the first step. In training images are loaded
    by ``CheckedLoadImageFromFile``; a test pipeline keeps the loader that mmdet's inferencer
    looks for. Weights that do not fit are refused by a ``CheckedWeightsHook``.
    """
    check_data(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else default.from_cfg(cfg)
    runner.register_hook(CheckedWeightsHook())
    return runner


def check_data(cfg: Config) -> None:
    """Let a config ask for the checks, where it has the classes that they stand in for."""
    for mode in ('train', 'val', 'test'):
        for _, dataset in iter_datasets(cfg.get(f'{mode}_dataloader'), ''):
            replace_type(dataset, DATASETS)
            if mode == 'train':
                for transform in dataset.get('pipeline') or ():
                    replace_type(transform, LOADERS)
    hooks = cfg.get('custom_hooks') or []
    if not any(isinstance(hook, dict) and hook.get('type') == 'RunCheckHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='RunCheckHook')]


def replace_type(part: Any, types: Dict[Any, str]) -> None:
    """Change the type of a part of the config, where it is one of the keys."""
    if isinstance(part, dict) and isinstance(part.get('type'), (str, type)):
        part['type'] = types.get(part['type'], part['type'])
