"""Checks of what a config says, against the classes that it names.

mmengine finds a misspelt key or type when it builds that part, with a traceback, and a value that
makes no sense when it is used, maybe after an epoch. Here the whole config is looked at first.
"""
import difflib
import inspect
from functools import cache
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple, Union

import mmdet.registry
import mmengine.registry
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from .errors import ConfigError
from .kinds import NoneType, check_integer, check_kind, check_number, kind_of, kinds_of, require

PACKAGE = __name__.split('.')[0]
EMPTY = inspect.Parameter.empty
RUNNER = {name: x for name, x in inspect.signature(Runner).parameters.items() if name != 'cfg'}
# Parts that are built by a function which takes some of the keys first.
NOT_BUILT_ALONE = ('norm_cfg', 'conv_cfg', 'act_cfg', 'upsample_cfg', 'init_cfg', 'override',
                   'dropout_layer', 'pad_cfg', 'pool_cfg', 'plugins', 'dcn', 'cfg',
                   'optim_wrapper')
# Parts of a model whose type is always that of a registry.
REGISTERED = ('model', 'backbone', 'neck', 'bbox_head', 'data_preprocessor', 'assigner',
              'sampler', 'positional_encoding', 'match_costs', 'init_cfg', 'loss_cls',
              'loss_bbox', 'loss_iou')
FOREIGN = ('Albu', )  # holds dicts with types of another library
# By mmengine, by the runner for a loader, and by DETR's heads
TAKEN_BEFORE = {'_scope_', 'type', '_delete_', 'num_batch_per_epoch', 'bg_cls_weight'}
TAKEN_BY_RUNNER = dict(
    custom_hooks={'priority'}, default_hooks={'priority'}, train_cfg={'by_epoch'},
    param_scheduler={'convert_to_iter_based', '_scale_by_batch'})
OPTIM_KEYS = {'constructor', 'paramwise_cfg', 'optimizer'}
IMPLIED = dict(val_cfg='ValLoop', test_cfg='TestLoop', log_processor='LogProcessor',
               **{f'{mode}_dataloader': DataLoader for mode in ('train', 'val', 'test')})
# Parts that take any name: those that are known and their kinds; almost one of them is refused.
FREE = {
    'metainfo': dict(classes=Union[list, str], palette=Any), 'data_prefix': dict(img=str, seg=str),
    'filter_cfg': dict(filter_empty_gt=bool, min_size=float),
    'env_cfg': dict(cudnn_benchmark=bool, mp_cfg=dict, dist_cfg=dict, resource_limit=int),
    'dist_cfg': dict(backend=str, timeout=float),
    'auto_scale_lr': dict(enable=bool, base_batch_size=int),
    'test_cfg': dict(each_group=bool), 'dn_cfg': dict(group_cfg=dict),
    'group_cfg': dict(dynamic=bool, num_groups=Optional[int], num_dn_queries=int),
}
# What the detectors of this package read of their settings
READ = {'model.train_cfg': {'assigner', 'sampler', 'groups_at_once'},
        'model.test_cfg': {'max_per_img', 'query_group', 'each_group'},
        'model.dn_cfg.group_cfg': set(FREE['group_cfg'])}
READ_FOR_MASKS = {
    'model.train_cfg': READ['model.train_cfg'] | {'num_points', 'oversample_ratio',
                                                  'importance_sample_ratio'},
    'model.test_cfg': {'query_group', 'each_group', 'panoptic_on', 'semantic_on', 'instance_on',
                       'max_per_image', 'iou_thr', 'filter_low_score', 'object_mask_thr'}}
PARAMWISE_KEYS = {'custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult',
                  'flat_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate'}
MULTIPLIERS = 'lr_mult', 'decay_mult'

# Values that mmengine and mmdet take and that make no sense

LAYERS = [f'model.{x}_cfg' for x in (
    'encoder.layer_cfg.self_attn', 'encoder.layer_cfg.ffn', 'decoder.layer_cfg.self_attn',
    'decoder.layer_cfg.cross_attn', 'decoder.layer_cfg.ffn')]
INTEGERS = {  # by the least that they may be
    1: ('model.num_queries', 'model.num_query_groups', 'model.panoptic_head.num_queries',
        'model.bbox_head.num_classes', 'model.encoder.num_layers', 'model.decoder.num_layers',
        *(f'{x}.{y}' for x in LAYERS for y in ('num_heads', 'feedforward_channels')),
        'model.data_preprocessor.pad_size_divisor', 'model.neck.out_channels',
        'model.backbone.base_channels', 'model.dn_cfg.group_cfg.num_dn_queries',
        'model.dn_cfg.group_cfg.num_groups', 'model.test_cfg.max_per_img',
        'model.test_cfg.max_per_image', 'train_dataloader.batch_size',
        'val_dataloader.batch_size', 'test_dataloader.batch_size', 'train_cfg.max_epochs',
        'train_cfg.max_iters', 'train_cfg.val_interval', 'optim_wrapper.accumulative_counts',
        'default_hooks.checkpoint.interval', 'default_hooks.logger.interval',
        'auto_scale_lr.base_batch_size', 'log_processor.window_size'),
    0: ('model.num_patterns', 'train_dataloader.num_workers', 'val_dataloader.num_workers',
        'test_dataloader.num_workers', 'randomness.seed'),
    -1: ('model.backbone.frozen_stages', 'model.encoder.num_cp', 'model.decoder.num_cp')}
ALLOWED = (('model.dn_cfg.group_cfg.num_groups', None), ('randomness.seed', None),
           ('default_hooks.checkpoint.interval', -1))  # what else they may be
NUMBERS = {  # of at least 0, or above it
    'optim_wrapper.optimizer.lr': False, 'optim_wrapper.clip_grad.max_norm': True,
    'model.bbox_head.loss_cls.gamma': False, 'model.bbox_head.loss_cls.alpha': False,
    'model.dn_cfg.label_noise_scale': False, 'model.dn_cfg.box_noise_scale': False,
    'env_cfg.dist_cfg.timeout': True}
DICTS = ('assigner', 'sampler', 'batch_sampler', 'data_prefix', 'filter_cfg', 'metainfo', 'mp_cfg',
         'dist_cfg', 'dn_cfg', 'train_cfg', 'test_cfg')
NEEDED = [f'model.{x}' for x in ('data_preprocessor', 'backbone', 'neck', 'encoder', 'decoder',
                                 'positional_encoding', 'bbox_head')]


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
    dicts = [pair for part in RUNNER for pair in iter_dicts(cfg.get(part), part)]
    values = {**cfg, **{f'{key}.{name}': x for key, part in dicts for name, x in part.items()}}
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        for key, value in dicts:
            check_dict(key, value)
    check_ranges(values)
    check_parts(values)
    check_settings(values)
    check_matching(values)
    check_head(values)
    check_widths(values)
    check_optimizer(values)


def correction(name: Any, known: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """The end of the sentence about an unknown name: the one that was probably meant."""
    found = difflib.get_close_matches(str(name), sorted(set(known)), n=1, cutoff=cutoff)
    return f'; the nearest name is {found[0]}: correct it.' if found else otherwise


def check_top_level(cfg: Config) -> None:
    """A config may have variables of its own, but hardly one named almost as a part of it."""
    for name, value in cfg.items():
        if name in RUNNER:
            check_kind(name, value, RUNNER[name])
            if isinstance(value, list) and list not in kinds_of(RUNNER[name].annotation):
                raise ConfigError(f'{name} is a list and must be a dict: write dict(...).')
        near = difflib.get_close_matches(name, RUNNER.keys() - cfg.keys(), n=1, cutoff=0.9)
        if name not in RUNNER and near and isinstance(value, (dict, list)):
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


def type_of(key: str, value: dict) -> Any:
    """What is made of a dict: what its type names, or what mmengine takes; EMPTY for neither."""
    if key == 'optim_wrapper.clip_grad':
        return clip_grad_value_ if value.get('type') == 'value' else clip_grad_norm_
    if key == 'train_cfg' and 'type' not in value:
        return EpochBasedTrainLoop if value.get('by_epoch', True) else IterBasedTrainLoop
    return value.get('type', IMPLIED.get(key, EMPTY))


def check_dict(key: str, value: dict) -> None:
    """Check one dict: its type against the registries, its keys against the type."""
    name = key.rsplit('.', 1)[-1].split('[')[0]
    for weight in ('loss_weight', 'weight'):
        if weight in value and key.startswith('model.'):
            check_number(f'{key}.{weight}', value[weight], 0)
    free = {x: inspect.Parameter(x, inspect.Parameter.KEYWORD_ONLY, annotation=y)
            for x, y in FREE.get(name, {}).items()}
    check_keys(key, value, free)
    check_kinds(key, value, free)
    type_ = type_of(key, value)
    classes = find_classes(type_) if type_ is not EMPTY else []
    if not classes:
        if type_ is EMPTY or key.startswith('model.') and name not in REGISTERED or \
                isinstance(type_, str) and '.' in type_:
            return
        known = [x for registry in registries() for x in registry.module_dict]
        raise ConfigError(f'{key}.type={type_!r} is an unknown type, which no module of '
                          'custom_imports registers' + correction(type_, known, ': correct it.'))
    if name in NOT_BUILT_ALONE:
        return
    signatures = [signature_of(cls) for cls in classes]
    known = {name for parameters, _ in signatures for name in parameters}
    closed = all(closed for _, closed in signatures)
    check_keys(key, value, known | TAKEN_BY_RUNNER.get(key.split('.')[0].split('[')[0], set()),
               classes[0].__name__ if closed else '')
    check_kinds(key, value, signatures[0][0])


def check_kinds(key: str, value: dict, parameters: Mapping[str, inspect.Parameter]) -> None:
    """Check the kinds of all values of a dict that are written for these parameters."""
    for name in value.keys() & parameters.keys():
        check_kind(f'{key}.{name}', value[name], parameters[name])


def check_keys(key: str, value: dict, known: Iterable[str], owner: str = '') -> None:
    """Refuse a name that its owner does not know; without an owner one that is almost known."""
    require(isinstance(value, dict), key, value, 'a dict')
    for name in set(value) - set(known) - TAKEN_BEFORE:
        end = correction(name, known, ': remove it.' if owner else '', 0.6 if owner else 0.85)
        if end:
            raise ConfigError(f'{key}.{name} is unknown' +
                              (f', {owner} has no such parameter' if owner else '') + end)


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
    _, name = Registry.split_scope_key(type_)
    found = [x.module_dict[name] for x in registries() if name in x.module_dict]
    if not found:  # of another scope, or importable; mmengine looks long
        found = [x.get(type_) for x in registries()]
    return [x for i, x in enumerate(found) if callable(x) and x not in found[:i]]


@cache
def signature_of(cls: Callable) -> Tuple[Dict[str, inspect.Parameter], bool]:
    """Parameters of a class, along its parents as far as ``**kwargs`` are handed on to them.

    Returns:
        tuple[dict, bool]: The parameters, and whether it takes no others.
    """
    owners = [x for x in cls.__mro__ if '__init__' in vars(x)] if inspect.isclass(cls) else [cls]
    parameters: Dict[str, inspect.Parameter] = {}
    closed = False
    for owner in owners:
        init = vars(owner)['__init__'] if inspect.isclass(owner) else owner
        try:
            own = inspect.signature(init).parameters
        except (TypeError, ValueError):
            return {}, False
        for name, parameter in own.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                parameters.setdefault(name, parameter)
        closed = closed or not any(x.kind == x.VAR_KEYWORD for x in own.values())
    return parameters, closed


def check_ranges(values: Dict[str, Any]) -> None:
    """Check numbers that are taken and then train nothing, or fail in the middle of a run."""
    for least, keys in INTEGERS.items():
        for key in keys:
            if key in values and (key, values[key]) not in ALLOWED:
                check_integer(key, values[key], least)
    for key, above in NUMBERS.items():
        if key in values:
            check_number(key, values[key], 0, above)
    for number in values.get('model.data_preprocessor.std') or ():
        check_number('A number of model.data_preprocessor.std', number, 0, above=True)
    group = values.get('model.test_cfg.query_group', 'all')
    require(group == 'all' or kind_of(group) is int and group >= 0, 'model.test_cfg.query_group',
            group, "the index of a group, or 'all'")


def check_parts(values: Dict[str, Any]) -> None:
    """Check that parts are dicts, and given where others need them."""
    for key, value in values.items():
        if key.split('.')[-1] in DICTS or key.rpartition('.')[0] == 'default_hooks':
            require(kind_of(value) in (dict, NoneType, None), key, value, 'a dict or None')
    for key in NEEDED if 'model.decoder' in values else ():
        require(isinstance(values.get(key, {}), dict), key, values.get(key),
                'a dict: the detector needs this part')
    for mode in ('train', 'val', 'test'):
        parts = (f'{mode}_dataloader', f'{mode}_cfg',
                 'optim_wrapper' if mode == 'train' else f'{mode}_evaluator')
        given = [part for part in parts if values.get(part) not in (None, [])]
        missing = [part for part in parts if part not in given]
        if given and missing:
            raise ConfigError(f'{missing[0]} is missing and {given[0]} is not: give all of '
                              f'{", ".join(parts)}, or set all of them to None.')
        if mode != 'train' and values.get(f'{mode}_dataloader.drop_last'):
            raise ConfigError(f'{mode}_dataloader.drop_last=True leaves images out of the score: '
                              'set it to False.')


def check_settings(values: Dict[str, Any]) -> None:
    """Check that the detector reads all settings that it gets; of others almost known names."""
    name = values.get('model.type')
    ours = any(x.__module__.startswith(PACKAGE) for x in find_classes(name))
    if ours or {'model.decoder', 'model.bbox_head'} <= values.keys():
        read = READ_FOR_MASKS if 'model.panoptic_head' in values else READ
        for key, known in read.items():
            check_keys(key, values.get(key) or {}, known, name if ours else '')


def check_matching(values: Dict[str, Any]) -> None:
    """Check that a model that is trained has an assigner with costs."""
    if values.get('train_dataloader') and 'model.decoder' in values and \
            values.get('model.train_cfg', {}) is None:
        raise ConfigError('model.train_cfg is None, and a training needs its assigner: write '
                          "model.train_cfg=dict(assigner=dict(type='GroupHungarianAssigner', "
                          'match_costs=[...])).')
    key = 'model.train_cfg.assigner.match_costs'
    if key in values and not values[key]:
        raise ConfigError(f'{key}={values[key]} has no cost: name at least one, such as '
                          'FocalLossCost, BBoxL1Cost and IoUCost.')


def check_head(values: Dict[str, Any]) -> None:
    """Check that the head is that of the detector, which mmdet gives the detector's name.

    DINO with groups needs that of this package, which keeps the groups' proposals apart.
    """
    detector, head = (find_classes(values.get(key))
                      for key in ('model.type', 'model.bbox_head.type'))
    if not (detector and head and all(map(inspect.isclass, detector + head))):
        return
    known = mmdet.registry.MODELS.module_dict
    wanted = next((known[f'{x.__name__}Head'] for x in detector[0].__mro__
                   if f'{x.__name__}Head' in known and
                   (x.__module__.startswith('mmdet.') or x.__name__ == 'GroupDINO')), head[0])
    if not issubclass(head[0], wanted) and 'model.decoder' in values:
        raise ConfigError(f'model.bbox_head.type={head[0].__name__} is not the head of '
                          f'{detector[0].__name__}: use {wanted.__name__}.')


def check_widths(values: Dict[str, Any]) -> None:
    """Check that the parts of a transformer have one width, which its heads divide."""
    for layer in LAYERS:
        width, heads = values.get(f'{layer}.embed_dims'), values.get(f'{layer}.num_heads')
        if isinstance(width, int) and heads and width % heads:
            raise ConfigError(f'{layer}.num_heads={heads} must divide embed_dims={width}.')
    keys = [*(f'{layer}.embed_dims' for layer in LAYERS), 'model.bbox_head.embed_dims',
            'model.neck.out_channels']
    given = [key for key in keys if key in values and 'model.decoder' in values]
    for key in given[1:]:
        if values[key] != values[given[0]]:
            raise ConfigError(f'{key}={values[key]} differs from {given[0]}={values[given[0]]}: a '
                              'transformer has one width, set both to the same.')


def check_optimizer(values: Dict[str, Any]) -> None:
    """Check what mixed precision needs, and what is said of single parameters."""
    wrapper = values.get('optim_wrapper') or {}
    name = wrapper.get('type', 'OptimWrapper')
    if name == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise ConfigError('optim_wrapper.type=AmpOptimWrapper: mixed precision of mmengine needs '
                          'a GPU and there is none; set it to BFloat16OptimWrapper, without dtype '
                          'and loss_scale.')
    of_amp = {'dtype', 'loss_scale'} & wrapper.keys()
    if name == 'OptimWrapper' and of_amp:
        raise ConfigError(f'optim_wrapper.{min(of_amp)} is for mixed precision: train with --amp, '
                          'or leave it out.')
    if name not in ('OptimWrapper', 'AmpOptimWrapper', 'BFloat16OptimWrapper'):
        return
    cls, = find_classes(name)
    check_keys('optim_wrapper', wrapper, OPTIM_KEYS | set(signature_of(cls)[0]), name)
    if 'constructor' in wrapper:
        return
    key = 'optim_wrapper.paramwise_cfg'
    check_keys(key, wrapper.get('paramwise_cfg') or {}, PARAMWISE_KEYS, 'the optimizer')
    custom = values.get(f'{key}.custom_keys') or {}
    check_keys(f'{key}.custom_keys', custom, ())
    for name, multipliers in custom.items():
        check_keys(f'{key}.custom_keys.{name}', multipliers, MULTIPLIERS, 'the optimizer')
        for multiplier, number in multipliers.items():
            check_number(f'{key}.custom_keys.{name}.{multiplier}', number, 0)


def check_option(cfg: Config, key: str) -> None:
    """Check, before it is merged, that an option starts at a part of the config.

    Another one would be a variable that nobody reads.
    """
    known = {*cfg, *RUNNER, 'runner_type'}
    part = key.split('.')[0]
    if part == 'custom_imports':
        raise ConfigError(f'--cfg-options {key}: imports happen when the config is read: write '
                          'custom_imports into the file.')
    if part not in known:
        raise ConfigError(f'--cfg-options {key}: the config has no {part}' +
                          correction(part, known, ': correct it.'))
