"""Checks of what a config says, against the classes that it names.

mmengine finds a misspelt key or type when it builds that part, with a traceback, and a value that
makes no sense when it is used, maybe after an epoch. Here the whole config is looked at first.
"""
import difflib
import inspect
from functools import cache
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import mmdet.registry
import mmengine.registry
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..errors import ConfigError

PARTS = ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator',
         'test_evaluator', 'train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper', 'param_scheduler',
         'default_hooks', 'custom_hooks', 'visualizer', 'log_processor')
# Parts that are built by a function which takes some of the keys first.
NOT_BUILT_ALONE = ('norm_cfg', 'conv_cfg', 'act_cfg', 'upsample_cfg', 'init_cfg', 'override',
                   'dropout_layer', 'pad_cfg', 'pool_cfg', 'plugins', 'dcn', 'cfg',
                   'optim_wrapper')
# Parts of a model whose type is always that of a registry.
REGISTERED = ('model', 'backbone', 'neck', 'bbox_head', 'data_preprocessor', 'assigner',
              'sampler', 'positional_encoding', 'match_costs', 'init_cfg', 'loss_cls',
              'loss_bbox', 'loss_iou')
FOREIGN = ('Albu', )  # holds dicts with types of another library
TAKEN_BEFORE = {'_scope_', 'type', '_delete_', 'bg_cls_weight'}  # the last one by DETR's heads
TAKEN_BY_RUNNER = dict(
    custom_hooks={'priority'}, default_hooks={'priority'}, train_cfg={'by_epoch'},
    param_scheduler={'convert_to_iter_based', '_scale_by_batch'})
LOADER_KEYS = {'dataset', 'sampler', 'batch_sampler', 'collate_fn', 'worker_init_fn',
               'num_batch_per_epoch', *inspect.signature(DataLoader).parameters}
OPTIM_KEYS = {'constructor', 'paramwise_cfg', 'optimizer'}


def check_values(cfg: Config) -> None:
    """Check the types, keys and values of a whole config.

    Raises:
        ConfigError: If a type is not registered, a key is unknown to its class, or a value is of
            another kind than the class says or outside of what makes sense. It names the key, and
            the nearest name that is known.
    """
    if not isinstance(cfg.get('model'), dict):
        raise ConfigError('The config has no model, a dict with the type of a detector: name a '
                          'config of a detector as CONFIG.')
    check_top_level(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        for part in PARTS:
            for key, value in iter_dicts(cfg.get(part), part):
                check_dict(key, value)
    check_ranges(cfg)
    check_matching(cfg)
    check_head(cfg)
    check_widths(cfg)
    check_precision(cfg)


def nearest(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The sentence's part about the name that was probably meant."""
    found = difflib.get_close_matches(str(name), sorted(set(known)), n=1, cutoff=cutoff)
    return f'the nearest name is {found[0]}' if found else ''


def check_top_level(cfg: Config) -> None:
    """A config may have variables of its own, but hardly one named almost as a part of it."""
    known = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
    for name, value in cfg.items():
        near = difflib.get_close_matches(name, known - set(cfg), n=1, cutoff=0.9)
        if name not in known and near and isinstance(value, (dict, list)):
            raise ConfigError(f'{name} is no part of a config, and {near[0]} is missing: correct '
                              'the name.')


def iter_dicts(value: Any, key: str) -> Iterator[Tuple[str, dict]]:
    """Yield the key and the content of every dict inside a part of the config."""
    if isinstance(value, dict):
        yield key, value
        if value.get('type') in FOREIGN:
            return
        for name, inner in value.items():
            yield from iter_dicts(inner, f'{key}.{name}')
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from iter_dicts(inner, f'{key}[{i}]')


def check_dict(key: str, value: dict) -> None:
    """Check one dict: its type against the registries, its keys against the type."""
    name = key.rsplit('.', 1)[-1].split('[')[0]
    if key.endswith('_dataloader'):
        check_keys(key, value, LOADER_KEYS, 'a data loader')
    if 'type' not in value:
        return
    classes = find_classes(value['type'])
    if not classes and (key.startswith('model.') and name not in REGISTERED or
                        isinstance(value['type'], str) and '.' in value['type']):
        return
    if not classes:
        known = [x for registry in registries() for x in registry.module_dict]
        near = nearest(value['type'], known)
        raise ConfigError(f'{key}.type={value["type"]!r} is an unknown type' +
                          (f'; {near}: correct it' if near else '; correct it') +
                          ', or import what registers it by custom_imports.')
    if name in NOT_BUILT_ALONE:
        return
    signatures = [parameters_of(cls) for cls in classes]
    if any(signature is None for signature in signatures):
        return
    parameters = {name: x for signature in signatures for name, x in signature.items()}
    taken = TAKEN_BY_RUNNER.get(key.split('.')[0].split('[')[0], ())
    check_keys(key, value, {*parameters, *taken}, str(classes[0].__name__))
    for name, parameter in parameters.items():
        if name in value and len(classes) == 1:
            check_kind(f'{key}.{name}', value[name], parameter.annotation)


def check_keys(key: str, value: dict, known: Iterable[str], owner: str) -> None:
    """Refuse a name that is none of the known ones, and say the nearest."""
    for name in value:
        if name not in known and name not in TAKEN_BEFORE:
            near = nearest(name, known)
            raise ConfigError(f'{key}.{name} is unknown, {owner} has no such parameter' +
                              (f'; {near}: correct it.' if near else ': remove it.'))


@cache
def registries() -> List[Registry]:
    """All registries of mmengine and mmdet, filled."""
    found = [x for module in (mmdet.registry, mmengine.registry)
             for x in vars(module).values() if isinstance(x, Registry)]
    for registry in found:
        registry.import_from_location()
    return found


def find_classes(type_: Any) -> List[Callable]:
    """The classes or functions that a ``type`` can name: several registries may know the name."""
    if not isinstance(type_, str):
        return [type_] if callable(type_) else []
    found = []
    for registry in registries():
        known = registry.get(type_)
        if known is not None and known not in found:
            found.append(known)
    return found


@cache
def parameters_of(cls: Callable) -> Optional[Dict[str, inspect.Parameter]]:
    """Parameters of a class, along its parents as far as ``**kwargs`` are handed on to them.

    None where the last one takes any.
    """
    owners = [x for x in cls.__mro__ if '__init__' in vars(x)] if inspect.isclass(cls) else [cls]
    parameters: Dict[str, inspect.Parameter] = {}
    closed = False
    for owner in owners:
        init = vars(owner)['__init__'] if inspect.isclass(owner) else owner
        try:
            own = inspect.signature(init).parameters
        except (TypeError, ValueError):
            return None
        for name, parameter in own.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                parameters.setdefault(name, parameter)
        closed = closed or not any(x.kind == x.VAR_KEYWORD for x in own.values())
    return parameters if closed else None


def check_kind(key: str, value: Any, annotation: Any) -> None:
    """Check numbers: a text, a truth value or a fraction where a class says ``int``, and so on."""
    wrong = (annotation is int and (isinstance(value, (bool, str)) or
                                    isinstance(value, float) and not value.is_integer()) or
             annotation is float and isinstance(value, (bool, str)) or
             annotation is bool and isinstance(value, str))
    if wrong:
        kind = {int: 'an integer', float: 'a number', bool: 'True or False'}[annotation]
        raise ConfigError(f'{key}={value!r} must be {kind}.')


# Values that mmengine and mmdet take and that make no sense

INTEGER = 'an integer of at least {}'


def is_integer(value: Any, least: int) -> bool:
    """Whether a value is an integer of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


RANGES: Sequence[Tuple[str, Union[int, float]]] = (
    ('model.num_queries', 1), ('model.num_query_groups', 1), ('model.bbox_head.num_classes', 1),
    ('model.test_cfg.max_per_img', 1), ('model.encoder.num_layers', 1),
    ('model.decoder.num_layers', 1),
    ('train_dataloader.batch_size', 1), ('val_dataloader.batch_size', 1),
    ('test_dataloader.batch_size', 1), ('train_dataloader.num_workers', 0),
    ('val_dataloader.num_workers', 0), ('test_dataloader.num_workers', 0),
    ('train_cfg.max_epochs', 1), ('train_cfg.max_iters', 1), ('train_cfg.val_interval', 1),
    ('optim_wrapper.accumulative_counts', 1))


def check_ranges(cfg: Config) -> None:
    """Check numbers that are taken and then train nothing, or fail in the middle of a run."""
    for key, least in RANGES:
        value, given = look_up(cfg, key)
        if given and not is_integer(value, least):
            raise ConfigError(f'{key}={value!r} must be {INTEGER.format(least)}.')
    group, given = look_up(cfg, 'model.test_cfg.query_group')
    if given and group != 'all' and not is_integer(group, 0):
        raise ConfigError(f"model.test_cfg.query_group={group!r} must be the index of a group, or "
                          "'all'.")
    rate, given = look_up(cfg, 'optim_wrapper.optimizer.lr')
    if given and (isinstance(rate, (bool, str)) or not rate >= 0 or rate == float('inf')):
        raise ConfigError(f'optim_wrapper.optimizer.lr={rate!r} must be a number of at least 0.')
    for mode in ('train', 'val', 'test'):
        parts = [f'{mode}_dataloader', f'{mode}_cfg',
                 'optim_wrapper' if mode == 'train' else f'{mode}_evaluator']
        given_parts = [part for part in parts if cfg.get(part) is not None]
        missing = [part for part in parts if part not in given_parts]
        if given_parts and missing:
            raise ConfigError(f'{missing[0]} is None and {given_parts[0]} is not: give all of '
                              f'{", ".join(parts)}, or set all of them to None.')
    check_loop(cfg.get('train_cfg'))


def check_matching(cfg: Config) -> None:
    """Check that a model that is trained has an assigner with costs."""
    train_cfg, given = look_up(cfg, 'model.train_cfg')
    if given and train_cfg is None and cfg.get('train_dataloader'):
        raise ConfigError('model.train_cfg is None, and a training needs its assigner: write '
                          "model.train_cfg=dict(assigner=dict(type='GroupHungarianAssigner', "
                          'match_costs=[...])).')
    costs, given = look_up(cfg, 'model.train_cfg.assigner.match_costs')
    if given and not costs:
        raise ConfigError(f'model.train_cfg.assigner.match_costs={costs} has no cost: name at '
                          'least one, such as FocalLossCost, BBoxL1Cost and IoUCost.')


def check_head(cfg: Config) -> None:
    """Check that DINO with groups has the head that keeps the groups' proposals apart."""
    model, head = (look_up(cfg, key)[0] for key in ('model.type', 'model.bbox_head.type'))
    if model == 'GroupDINO' and head == 'DINOHead':
        raise ConfigError('model.bbox_head.type=DINOHead takes the groups of GroupDINO for one: '
                          'use GroupDINOHead.')


def check_widths(cfg: Config) -> None:
    """Check that the parts of a transformer have one width."""
    found = {}
    for part in ('encoder.layer_cfg.self_attn_cfg', 'encoder.layer_cfg.ffn_cfg',
                 'decoder.layer_cfg.self_attn_cfg', 'decoder.layer_cfg.cross_attn_cfg',
                 'decoder.layer_cfg.ffn_cfg', 'bbox_head'):
        key = f'model.{part}.embed_dims'
        width, given = look_up(cfg, key)
        if given:
            found[key] = width
    (first, width), *others = found.items() or [('', None)]
    for key, other in others:
        if other != width:
            raise ConfigError(f'{key}={other} differs from {first}={width}: a transformer has one '
                              'width, set both to the same.')


def look_up(cfg: Any, key: str) -> Tuple[Any, bool]:
    """Value of a dotted key, and whether the config has it."""
    for name in key.split('.'):
        if not hasattr(cfg, 'get') or name not in cfg:
            return None, False
        cfg = cfg.get(name)
    return cfg, True


def check_loop(train_cfg: Optional[dict]) -> None:
    """Check the keys of a training loop whose type ``by_epoch`` says."""
    if train_cfg and 'type' not in train_cfg:
        loop = EpochBasedTrainLoop if train_cfg.get('by_epoch', True) else IterBasedTrainLoop
        check_keys('train_cfg', train_cfg, {'by_epoch', *parameters_of(loop)}, loop.__name__)


def check_precision(cfg: Config) -> None:
    """Check what mixed precision needs."""
    wrapper = cfg.get('optim_wrapper')
    if not isinstance(wrapper, dict):
        return
    amp = wrapper.get('type') == 'AmpOptimWrapper'
    if amp and get_device() == 'cpu':
        raise ConfigError('optim_wrapper.type=AmpOptimWrapper: mixed precision of mmengine needs '
                          'a GPU and there is none; set it to BFloat16OptimWrapper, without dtype '
                          'and loss_scale.')
    for name in ('dtype', 'loss_scale'):
        if not amp and name in wrapper and wrapper.get('type', 'OptimWrapper') == 'OptimWrapper':
            raise ConfigError(f'optim_wrapper.{name} is for mixed precision: train with --amp, or '
                              'leave it out.')
    if wrapper.get('type', 'OptimWrapper') in (
            'OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper'):
        cls, = find_classes(wrapper.get('type', 'OptimWrapper'))
        check_keys('optim_wrapper', wrapper, OPTIM_KEYS | set(parameters_of(cls) or ()),
                   cls.__name__)


def check_option(cfg: Config, key: str) -> None:
    """Check, before it is merged, that an option starts at a part of the config.

    Another one would be a variable that nobody reads.
    """
    known = {*cfg, *inspect.signature(Runner.__init__).parameters, 'runner_type'} - {'self', 'cfg'}
    part = key.split('.')[0]
    if part not in known:
        near = nearest(part, known)
        raise ConfigError(f'--cfg-options {key}: the config has no {part}' +
                          (f'; {near}: correct it.' if near else ': correct it.'))
