"""Checks of what a config says, against the classes that it names.

mmengine finds a misspelt key or type when it builds that part, with a traceback, and a value that
makes no sense when it is used, maybe after an epoch. Here the whole config is looked at first.
"""
import difflib
import inspect
from functools import cache
from typing import (Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence,
                    Tuple)

import mmdet.registry
import mmengine.registry
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from ..errors import ConfigError
from .kinds import NoneType, check_integer, check_kind, check_number, kind_of, kinds_of

PACKAGE = __name__.split('.')[0]
PARTS = ('model', 'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator',
         'test_evaluator', 'train_cfg', 'val_cfg', 'test_cfg', 'optim_wrapper', 'param_scheduler',
         'default_hooks', 'custom_hooks', 'visualizer', 'log_processor', 'env_cfg',
         'auto_scale_lr')
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
IMPLIED = dict(val_cfg='ValLoop', test_cfg='TestLoop', log_processor='LogProcessor')
# Parts that take any name: those that are known and their kinds; almost one of them is refused.
FREE = {
    'metainfo': dict(classes=Any, palette=Any), 'data_prefix': dict(img=str, seg=str),
    'filter_cfg': dict(filter_empty_gt=bool, min_size=float),
    'env_cfg': dict(cudnn_benchmark=bool, mp_cfg=dict, dist_cfg=dict, resource_limit=int),
    'dist_cfg': dict(backend=str, timeout=float),
    'auto_scale_lr': dict(enable=bool, base_batch_size=int),
    'test_cfg': dict(each_group=bool), 'dn_cfg': dict(group_cfg=dict),
    'group_cfg': dict(dynamic=bool, num_groups=Optional[int], num_dn_queries=int),
}
# What the detectors of this package read of their settings
READ = {'train_cfg': {'assigner', 'sampler', 'groups_at_once'},
        'test_cfg': {'max_per_img', 'query_group', 'each_group'},
        'dn_cfg.group_cfg': set(FREE['group_cfg'])}
READ_FOR_MASKS = dict(
    train_cfg=READ['train_cfg'] | {'num_points', 'oversample_ratio', 'importance_sample_ratio'},
    test_cfg={'query_group', 'each_group', 'panoptic_on', 'semantic_on', 'instance_on',
              'max_per_image', 'iou_thr', 'filter_low_score', 'object_mask_thr'})
PARAMWISE_KEYS = {'custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult',
                  'flat_decay_mult', 'dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate'}
MULTIPLIERS = 'lr_mult', 'decay_mult'


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
    known = dict(inspect.signature(Runner.__init__).parameters)
    del known['self'], known['cfg']
    for name, value in cfg.items():
        if name in known:
            check_kind(name, value, known[name])
            if isinstance(value, list) and list not in kinds_of(known[name].annotation):
                raise ConfigError(f'{name} is a list and must be a dict: write dict(...).')
        near = difflib.get_close_matches(name, known.keys() - cfg.keys(), n=1, cutoff=0.9)
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
    for weight in ('loss_weight', 'weight'):
        if weight in value and key.startswith('model.'):
            check_number(f'{key}.{weight}', value[weight], 0)
    if key.endswith('_dataloader'):
        check_keys(key, value, LOADER_KEYS, 'a data loader')
        check_kinds(key, value, inspect.signature(DataLoader).parameters)
    known = FREE.get(name, {})
    check_keys(key, value, known)
    check_kinds(key, value, {x: inspect.Parameter(x, inspect.Parameter.KEYWORD_ONLY, annotation=y)
                             for x, y in known.items()})
    if 'type' not in value and key not in IMPLIED:
        return
    classes = find_classes(value.get('type', IMPLIED.get(key)))
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
    signatures = [signature_of(cls) for cls in classes]
    parameters = {name: x for signature, _ in signatures for name, x in signature.items()}
    if all(closed for _, closed in signatures):
        taken = TAKEN_BY_RUNNER.get(key.split('.')[0].split('[')[0], ())
        check_keys(key, value, {*parameters, *taken}, str(classes[0].__name__))
    else:
        check_keys(key, value, parameters)
    check_kinds(key, value, signatures[0][0])


def check_kinds(key: str, value: dict, parameters: Mapping[str, inspect.Parameter]) -> None:
    """Check the kinds of all values of a dict that are written for these parameters."""
    for name in value.keys() & parameters.keys():
        check_kind(f'{key}.{name}', value[name], parameters[name])


def check_keys(key: str, value: dict, known: Iterable[str], owner: str = '') -> None:
    """Refuse a name that its owner does not know; without an owner one that is almost known."""
    for name in set(value) - set(known) - TAKEN_BEFORE:
        near = nearest(name, known, cutoff=0.6 if owner else 0.85)
        if owner or near:
            raise ConfigError(f'{key}.{name} is unknown' +
                              (f', {owner} has no such parameter' if owner else '') +
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
    _, name = Registry.split_scope_key(type_)
    found = [x.module_dict[name] for x in registries() if name in x.module_dict]
    if not found:  # of another scope, or importable; mmengine looks long
        found = [x.get(type_) for x in registries()]
    return [x for i, x in enumerate(found) if x is not None and x not in found[:i]]


def parameters_of(cls: Callable) -> Optional[Dict[str, inspect.Parameter]]:
    """Parameters of a class, or None where it takes any."""
    parameters, closed = signature_of(cls)
    return parameters if closed else None


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


# Values that mmengine and mmdet take and that make no sense

INTEGERS: Sequence[tuple] = (  # the least one, and what else it may be
    ('model.num_queries', 1), ('model.num_query_groups', 1), ('model.bbox_head.num_classes', 1),
    ('model.test_cfg.max_per_img', 1), ('model.encoder.num_layers', 1),
    ('model.decoder.num_layers', 1),
    ('train_dataloader.batch_size', 1), ('val_dataloader.batch_size', 1),
    ('test_dataloader.batch_size', 1), ('train_dataloader.num_workers', 0),
    ('val_dataloader.num_workers', 0), ('test_dataloader.num_workers', 0),
    ('train_cfg.max_epochs', 1), ('train_cfg.max_iters', 1), ('train_cfg.val_interval', 1),
    ('optim_wrapper.accumulative_counts', 1), ('default_hooks.logger.interval', 1),
    ('auto_scale_lr.base_batch_size', 1), ('log_processor.window_size', 1),
    ('model.data_preprocessor.pad_size_divisor', 1), ('model.neck.out_channels', 1),
    ('model.backbone.base_channels', 1), ('model.backbone.frozen_stages', -1),
    ('model.encoder.num_cp', -1), ('model.decoder.num_cp', -1), ('model.num_patterns', 0),
    ('model.panoptic_head.num_queries', 1), ('model.test_cfg.max_per_image', 1),
    ('model.dn_cfg.group_cfg.num_dn_queries', 1), ('model.dn_cfg.group_cfg.num_groups', 1, None),
    ('default_hooks.checkpoint.interval', 1, -1), ('randomness.seed', 0, None))
NUMBERS: Sequence[Tuple[str, bool]] = (  # of at least 0, or above it
    ('optim_wrapper.optimizer.lr', False), ('optim_wrapper.clip_grad.max_norm', True),
    ('model.dn_cfg.label_noise_scale', False), ('model.dn_cfg.box_noise_scale', False),
    ('env_cfg.dist_cfg.timeout', True))
NEEDED = ('data_preprocessor', 'backbone', 'neck', 'encoder', 'decoder', 'positional_encoding',
          'bbox_head')


def check_ranges(cfg: Config) -> None:
    """Check numbers that are taken and then train nothing, or fail in the middle of a run."""
    for key, least, *others in INTEGERS:
        value, given = look_up(cfg, key)
        if given and value not in others:
            check_integer(key, value, least)
    for key, above in NUMBERS:
        value, given = look_up(cfg, key)
        if given:
            check_number(key, value, 0, above)
    for number in look_up(cfg, 'model.data_preprocessor.std')[0] or ():
        check_number('A number of model.data_preprocessor.std', number, 0, above=True)
    settings = {f'default_hooks.{x}': y for x, y in (cfg.get('default_hooks') or {}).items()}
    settings.update((f'model.{x}', cfg.model.get(x)) for x in ('train_cfg', 'test_cfg', 'dn_cfg'))
    for key, value in settings.items():
        if kind_of(value) not in (dict, NoneType, None):
            raise ConfigError(f'{key}={value!r} must be a dict or None.')
    group, given = look_up(cfg, 'model.test_cfg.query_group')
    if given and group != 'all':
        try:
            check_integer('model.test_cfg.query_group', group, 0)
        except ConfigError:
            raise ConfigError(f'model.test_cfg.query_group={group!r} must be the index of a group,'
                              " or 'all'.") from None
    check_settings(cfg)
    for part in NEEDED if 'decoder' in cfg.model else ():
        if part in cfg.model and not isinstance(cfg.model[part], dict):
            raise ConfigError(f'model.{part}={cfg.model[part]!r} must be a dict: the detector '
                              'needs this part.')
    for mode in ('train', 'val', 'test'):
        parts = [f'{mode}_dataloader', f'{mode}_cfg',
                 'optim_wrapper' if mode == 'train' else f'{mode}_evaluator']
        given_parts = [part for part in parts if cfg.get(part) not in (None, [])]
        missing = [part for part in parts if part not in given_parts]
        if given_parts and missing:
            raise ConfigError(f'{missing[0]} is missing and {given_parts[0]} is not: give all of '
                              f'{", ".join(parts)}, or set all of them to None.')
    for mode in ('val', 'test'):
        if look_up(cfg, f'{mode}_dataloader.drop_last')[0]:
            raise ConfigError(f'{mode}_dataloader.drop_last=True leaves images out of the score: '
                              'set it to False.')
    check_loop(cfg.get('train_cfg'))


def check_settings(cfg: Config) -> None:
    """Check that the detector reads all settings that it gets; of others almost known names."""
    ours = any(x.__module__.startswith(PACKAGE) for x in find_classes(cfg.model.get('type')))
    if not ours and not {'decoder', 'bbox_head'} <= cfg.model.keys():
        return
    for name, known in (READ_FOR_MASKS if 'panoptic_head' in cfg.model else READ).items():
        settings, _ = look_up(cfg, f'model.{name}')
        check_keys(f'model.{name}', settings or {}, known, cfg.model.type if ours else '')


def check_matching(cfg: Config) -> None:
    """Check that a model that is trained has an assigner with costs."""
    train_cfg, given = look_up(cfg, 'model.train_cfg')
    if given and train_cfg is None and cfg.get('train_dataloader') and 'decoder' in cfg.model:
        raise ConfigError('model.train_cfg is None, and a training needs its assigner: write '
                          "model.train_cfg=dict(assigner=dict(type='GroupHungarianAssigner', "
                          'match_costs=[...])).')
    costs, given = look_up(cfg, 'model.train_cfg.assigner.match_costs')
    if given and not costs:
        raise ConfigError(f'model.train_cfg.assigner.match_costs={costs} has no cost: name at '
                          'least one, such as FocalLossCost, BBoxL1Cost and IoUCost.')


def check_head(cfg: Config) -> None:
    """Check that the head is that of the detector, which mmdet gives the detector's name.

    DINO with groups needs that of this package, which keeps the groups' proposals apart.
    """
    detector, head = (find_classes(look_up(cfg, key)[0])
                      for key in ('model.type', 'model.bbox_head.type'))
    if not (detector and head and all(map(inspect.isclass, detector + head))):
        return
    known = mmdet.registry.MODELS.module_dict
    wanted = next((known[f'{x.__name__}Head'] for x in detector[0].__mro__
                   if f'{x.__name__}Head' in known and
                   (x.__module__.startswith('mmdet.') or x.__name__ == 'GroupDINO')), head[0])
    if not issubclass(head[0], wanted) and 'decoder' in cfg.model:
        raise ConfigError(f'model.bbox_head.type={head[0].__name__} is not the head of '
                          f'{detector[0].__name__}: use {wanted.__name__}.')


def check_widths(cfg: Config) -> None:
    """Check that the parts of a transformer have one width, which its heads divide."""
    found = {}
    for part in ('encoder.layer_cfg.self_attn_cfg', 'encoder.layer_cfg.ffn_cfg',
                 'decoder.layer_cfg.self_attn_cfg', 'decoder.layer_cfg.cross_attn_cfg',
                 'decoder.layer_cfg.ffn_cfg', 'bbox_head'):
        key = f'model.{part}.embed_dims'
        width, given = look_up(cfg, key)
        if given:
            found[key] = width
        for name in ('num_heads', 'feedforward_channels'):
            value, given = look_up(cfg, f'model.{part}.{name}')
            if given:
                check_integer(f'model.{part}.{name}', value, 1)
            if given and name == 'num_heads' and isinstance(width, int) and width % value:
                raise ConfigError(f'model.{part}.num_heads={value} must divide embed_dims='
                                  f'{width}.')
    width, given = look_up(cfg, 'model.neck.out_channels')
    if given and 'decoder' in cfg.model:
        found['model.neck.out_channels'] = width
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
        check_clipping(wrapper.get('clip_grad'))
        if 'constructor' not in wrapper:
            check_multipliers(wrapper.get('paramwise_cfg'))


def check_clipping(clip_grad: Any) -> None:
    """Check the arguments of the function that clips gradients; the parent calls it late."""
    if isinstance(clip_grad, dict):
        key, clip = 'optim_wrapper.clip_grad', clip_grad.get('type', 'norm')
        parameters = inspect.signature(
            clip_grad_value_ if clip == 'value' else clip_grad_norm_).parameters
        check_keys(key, clip_grad, parameters, f'clip_grad_{clip}_')
        check_kinds(key, clip_grad, parameters)


def check_multipliers(paramwise: Any) -> None:
    """Check what is said of single parameters; mmengine ignores what it does not know."""
    if not isinstance(paramwise, dict):
        return
    key = 'optim_wrapper.paramwise_cfg'
    check_keys(key, paramwise, PARAMWISE_KEYS, 'the optimizer')
    custom = paramwise.get('custom_keys') or {}
    check_is_dict(f'{key}.custom_keys', custom)
    for name, value in custom.items():
        part = f'{key}.custom_keys.{name}'
        check_is_dict(part, value)
        check_keys(part, value, MULTIPLIERS, 'the optimizer')
        for multiplier, number in value.items():
            check_number(f'{part}.{multiplier}', number, 0)


def check_is_dict(key: str, value: Any) -> None:
    """Check that a value, whose content is checked next, is a dict."""
    if not isinstance(value, dict):
        raise ConfigError(f'{key}={value!r} must be a dict.')


def check_option(cfg: Config, key: str) -> None:
    """Check, before it is merged, that an option starts at a part of the config.

    Another one would be a variable that nobody reads.
    """
    known = {*cfg, *inspect.signature(Runner.__init__).parameters, 'runner_type'} - {'self', 'cfg'}
    part = key.split('.')[0]
    if part == 'custom_imports':
        raise ConfigError(f'--cfg-options {key}: imports happen when the config is read: write '
                          'custom_imports into the file.')
    if part not in known:
        near = nearest(part, known)
        raise ConfigError(f'--cfg-options {key}: the config has no {part}' +
                          (f'; {near}: correct it.' if near else ': correct it.'))
