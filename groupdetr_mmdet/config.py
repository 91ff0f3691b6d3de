"""Find, read and merge configs; find the nearest name of an unknown key."""
import difflib
import inspect
import os.path as osp
import re
import traceback
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import FrameType
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.runner import Runner

from .errors import ConfigError, first_line, warn_once
from .group_detector import GroupDetector
from .io import irregular

WEIGHTS = ('.pth', '.pt', '.ckpt', '.safetensors')
SHIPPED = Path(__file__).parent / '.mim/configs/group_detr'
# Top-level keys of a config that mmengine, mmdet or this package reads
PARTS = {*inspect.signature(Runner).parameters, 'runner_type', 'allow_missing', 'sync_bn',
         'find_unused_parameters', 'compile', 'tta_pipeline', 'activation_checkpointing'}


def shipped_configs() -> Dict[str, Path]:
    """Return the files of the shipped configs by name, such as ``demo/cond_detr_demo``."""
    names = {file.relative_to(SHIPPED).with_suffix('').as_posix(): file
             for file in sorted(SHIPPED.rglob('*.py'))}
    return {name: file for name, file in names.items() if not name.startswith('_base_/')}


def find_config(config: str, key: str = 'CONFIG') -> str:
    """Return the path of a config: a file, or a shipped name such as ``cond_detr_demo``.

    Raises:
        ConfigError: If there is neither. The message calls the argument ``key``.
    """
    if osp.isfile(config):
        return config
    if irregular(config):
        raise ConfigError(f'{key}: {config} is {irregular(config)} and not a config: name a file.')
    shipped = shipped_configs()
    by_stem = {file.stem: name for name, file in shipped.items()}
    name = config[:-3] if config.endswith('.py') else config
    name = name if name in shipped else by_stem.get(name)
    if name:
        return str(shipped[name])
    near = by_stem.get(nearest(Path(config).stem, by_stem))
    raise ConfigError(f'{key}: {config} does not exist; correct the path, or name a shipped config'
                      + (f': the nearest name is {near}.' if near else '.'))


def read_config(config: str, key: str = 'CONFIG') -> Config:
    """Read the config that :func:`find_config` finds.

    Raises:
        ConfigError: If there is no such file, mmengine cannot read it as a config, or a module of
            ``custom_imports`` or one inside is missing. Other errors in such a module are raised.
    """
    path = find_config(config, key)
    try:
        return Config.fromfile(path)
    except Exception as error:
        cause, calls = error, {x.name for x in traceback.extract_tb(error.__traceback__)}
        if 'import_modules_from_strings' in calls and not isinstance(error, ImportError):
            raise
        while isinstance(cause, ImportError) and cause.__context__:  # mmengine names it nowhere
            cause = cause.__context__
        swapped = '; are CONFIG and CHECKPOINT swapped?' if path.endswith(WEIGHTS) else '.'
        raise ConfigError(f'{key}: {path} is not a config ({type(cause).__name__}: '
                          f'{first_line(cause)}){swapped}') from error


class Options(DictAction):
    """``--cfg-options`` of a command, ``key=value`` pairs as in mmengine."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: List[str],
                 option_string: Optional[str] = None) -> None:
        """Parse the options."""
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError):
            parser.error(f'{option_string} {" ".join(values)}: write key=value pairs')


def merge_options(cfg: Config, options: Optional[Dict[str, Any]]) -> None:
    """Merge ``--cfg-options`` into a config, in place.

    Raises:
        ConfigError: If the config has no such place, or an option is probably misspelled.
    """
    for key, value in (options or {}).items():
        check_option(cfg, key)
        try:
            cfg.merge_from_dict({key: value})
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f'--cfg-options {key}: the config has no such place '
                              f'({first_line(error)}); correct the key.') from error


def check_option(cfg: Config, key: str) -> None:
    """Raise a ConfigError for an option that is probably misspelled; warn of unknown names."""
    part = key.split('.')[0]
    if part == 'custom_imports':
        raise ConfigError(f'--cfg-options {key}: mmengine imports while it reads the file: write '
                          'custom_imports into the file.')
    if part not in PARTS and part not in cfg:
        if near := nearest(part, {*PARTS, *cfg}):
            raise ConfigError(f'--cfg-options {key}: the config has no {part}; the nearest name '
                              f'is {near}: correct it.')
        warn_once(f'--cfg-options {key}: the config has no {part}.')
    elif part not in PARTS and not isinstance(cfg[part], dict):
        warn_once(f'--cfg-options {key}: this changes nothing that the file made of {part}: edit '
                  f'{part} in the file, or set the keys that it is used for.')


def nearest(name: Any, known: Iterable[str]) -> Optional[str]:
    """Return the known name most similar to ``name``, None if none is similar."""
    return next(iter(difflib.get_close_matches(str(name), sorted(set(known)), n=1)), None)


def hint(words: str, stack: Sequence[FrameType]) -> str:
    """Return a hint, the nearest known name, for a library's error about a key or type.

    For a key of this package in a stock detector the hint is the detector with groups, and for a
    data set without images what leaves them out. ``stack`` has the frames of the error, the
    innermost last.
    """
    if stack and stack[-1].f_code.co_name == '_serialize_data':
        classes = stack[-1].f_locals['self'].metainfo.get('classes')
        return (f'; no image is left: correct filter_cfg or metainfo.classes={classes!r:.60}, of '
                'which the labels may have no object')
    builds = [frame.f_locals for frame in stack if frame.f_code.co_name == 'build_from_cfg']
    built, known = builds[-1].get('obj_cls') if builds else None, set()
    if match := re.search(r"(\w+)[.\w]*\(\) got an unexpected keyword argument '(\w+)'", words):
        grouped = MODELS.module_dict.get(f'Group{getattr(built, "__name__", "")}')
        if match[2] in parameters(grouped):
            return f"; set model.type='{grouped.__name__}'"
        seen = (*stack[-1].f_globals.values(), *stack[-1].f_locals.values(), built)
        known = {name for x in seen if inspect.isclass(x) for base in x.__mro__
                 if base.__name__ == match[1] for name in parameters(x)}
    elif (match := re.search(r"()'?(\S+) is not in the \S+ registry", words)) and builds:
        root = builds[-1]['registry']
        while root.parent is not None:
            root = root.parent
        known = {name for x in (root, *root.children.values()) for name in x.module_dict}
    near = known and nearest(match[2], known)
    return f'; the nearest name is {near}' if near else ''


def parameters(cls: Optional[type]) -> Set[str]:
    """Return the names of the parameters of a class and its bases."""
    inits = (vars(base).get('__init__') for base in getattr(cls, '__mro__', ()))
    return {name for init in inits if inspect.isfunction(init)
            for name in inspect.signature(init).parameters}


def iter_dicts(value: Any, key: str) -> Iterator[Tuple[str, dict]]:
    """Yield key and content of a part of a config and of every dict inside, outermost first."""
    if isinstance(value, dict):
        yield key, value
        for name, inner in value.items():
            yield from iter_dicts(inner, f'{key}.{name}')
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from iter_dicts(inner, f'{key}[{i}]')


def datasets_of(cfg: dict) -> Iterator[dict]:
    """Yield the config of every data set inside a loader or a wrapper of data sets."""
    inner = [x for x in (cfg.get('dataset'), *cfg.get('datasets', ())) if isinstance(x, dict)]
    for part in inner:
        yield from datasets_of(part)
    if not inner:
        yield cfg


def check_groups(key: str, model: Optional[dict]) -> None:
    """Raise a ConfigError unless ``model`` is a detector with groups, as ``key`` requires."""
    name = (model or {}).get('type')
    detector = MODELS.get(name) if isinstance(name, str) else name
    if not (inspect.isclass(detector) and issubclass(detector, GroupDetector)):
        raise ConfigError(f'{key}: model.type={name} has no groups of queries; choose a '
                          'config of a detector with groups, such as GroupConditionalDETR.')
