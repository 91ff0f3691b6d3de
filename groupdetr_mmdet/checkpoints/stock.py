"""Convert configs of our detectors to configs of mmdet's."""
import copy
import inspect
from typing import Any, Dict, Mapping, Optional, Sequence

import torch
from mmdet.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.config import Config, ConfigDict
from torch import nn

from ..config import datasets_of
from ..errors import ConfigError
from ..ops.recompute import LAYER_OPTIONS
from ..registry import SCOPE

STOCK_WIDTH = 256  # fixed in mmdet's ConditionalDETR and two-stage detectors
OUR_KEYS = ('separate_self_attn', 'new_group_noise', 'train_cfg')
REMOVED_KEYS = ('init_cfg', 'num_query_groups')  # keys to remove at any depth
REGISTRIES = (MODELS, DATASETS, TRANSFORMS, METRICS)
KEPT_KEYS = ('test_dataloader', 'test_evaluator', 'test_cfg', 'env_cfg', 'visualizer',
             'vis_backends', 'tta_model', 'tta_pipeline', 'log_level')  # beside the model


def stock_model(model: ConfigDict) -> ConfigDict:
    """Return the config of the stock detector of a detector with groups, for inference.

    Raises:
        ConfigError: If mmdet's classes cannot run it.
    """
    detector = build_without_memory(one_group(model))
    stock = {key: value for key, value in with_parents(with_stock_loss(model)).items()
             if key not in OUR_KEYS}
    for key in LAYER_OPTIONS:
        stock.get('decoder', {}).pop(key, None)
    stock['test_cfg'] = {key: value for key, value in detector.test_cfg.items()
                         if key not in ('query_group', 'each_group')}
    fixed_width = stock['type'] in ('DINO', 'ConditionalDETR') or stock.get('as_two_stage')
    if fixed_width and detector.embed_dims != STOCK_WIDTH:
        raise ConfigError(f'--to mmdet: the model has {detector.embed_dims} channels, and the '
                          f'stock {stock["type"]} runs with {STOCK_WIDTH} only: keep --to ours.')
    return ConfigDict(stock)


def with_stock_loss(model: Mapping) -> Dict[str, Any]:
    """Copy a model's config, with mmdet's focal loss in the place of a loss of ours."""
    head = model.get('bbox_head') or {}
    if own_class((head.get('loss_cls') or {}).get('type')) is None:
        return dict(model)
    return dict(model, bbox_head=dict(head, loss_cls=dict(type='FocalLoss', use_sigmoid=True)))


def one_group(model: Mapping) -> Dict[str, Any]:
    """Copy a model's config with a single group."""
    test_cfg = dict(model.get('test_cfg') or {}, query_group=0)
    return dict(model, num_query_groups=1, test_cfg=test_cfg)


def stock_config(cfg: Config, classes: Optional[Sequence[str]] = None) -> Config:
    """Return a config for mmdet alone, of one group of our detector, with class names."""
    stock = with_parents({key: cfg[key] for key in KEPT_KEYS if key in cfg})
    for dataset in datasets_of(stock['test_dataloader']) if classes else ():
        dataset.update(metainfo=dict(classes=tuple(classes)))
    return Config(dict(stock, default_scope='mmdet', model=stock_model(cfg.model)))


def build_without_memory(model: Mapping) -> nn.Module:
    """Build a model for inference on the meta device: names and shapes without numbers."""
    with torch.device('meta'):
        return MODELS.build(ConfigDict(copy.deepcopy(dict(model, train_cfg=None))))


def with_parents(cfg: Any) -> Any:
    """Copy a config without the keys ``REMOVED_KEYS``, and with mmdet's classes instead of ours.

    Raises:
        ConfigError: If mmdet has no such class.
    """
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(with_parents(x) for x in cfg)
    if not isinstance(cfg, dict):
        return cfg
    copied = {key: with_parents(value) for key, value in cfg.items()
              if key not in REMOVED_KEYS and (key, value) != ('_scope_', SCOPE)}
    ours = own_class(cfg.get('type'))
    if ours is None:
        return copied
    parent = next(x for x in ours.__mro__ if own_class(x) is None)
    if MODELS.get(ours.__name__) is ours and ours.__name__ != f'Group{parent.__name__}':
        raise ConfigError(f'--to mmdet: mmdet has no class for {ours.__name__}: '
                          'keep --to ours.')
    return dict(copied, type=parent.__name__)


def own_class(name: Any) -> Optional[type]:
    """Return a class by name, or the class itself, if it is of this package, else None."""
    found = [name, *(x.get(name) for x in REGISTRIES if isinstance(name, str) and name)]
    return next((x for x in found
                 if inspect.isclass(x) and x.__module__.split('.')[0] == SCOPE), None)
