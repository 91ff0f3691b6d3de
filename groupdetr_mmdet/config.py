"""The configs that come with the package, by name."""
import difflib
import os.path as osp
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict, List, Optional

from mmengine.config import Config, DictAction

from .errors import ConfigError
from .config_check import check_option
from .io import irregular

WEIGHTS = ('.pth', '.pt', '.ckpt', '.safetensors')
SHIPPED = Path(__file__).parent / '.mim/configs/group_detr'


def shipped_configs() -> Dict[str, Path]:
    """Files of the shipped configs by their names, such as ``demo/cond_detr_demo``."""
    names = {file.relative_to(SHIPPED).with_suffix('').as_posix(): file
             for file in sorted(SHIPPED.rglob('*.py'))}
    return {name: file for name, file in names.items() if not name.startswith('_base_/')}


def find_config(config: str, key: str = 'CONFIG') -> str:
    """Find a config file by its path, or a shipped one by its name, with folder or without.

    Args:
        config (str): Path or name, such as ``demo/cond_detr_demo`` or ``cond_detr_demo``.
        key (str): What a message calls the argument. Defaults to 'CONFIG'.
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
    near = difflib.get_close_matches(Path(config).stem, by_stem, n=1)
    nearest = f': the nearest name is {by_stem[near[0]]}' if near else ''
    raise ConfigError(f'{key}: {config} does not exist; put it there, correct the path, or name '
                      f'a shipped config{nearest}.')


def read_config(config: str, key: str = 'CONFIG') -> Config:
    """Read the config that :func:`find_config` finds.

    Raises:
        ConfigError: If it is another kind of file, has an error, or misses a base or an import.
    """
    path = find_config(config, key)
    try:
        return Config.fromfile(path)
    except ConfigError:
        raise
    except Exception as error:
        swapped = '; are CONFIG and CHECKPOINT swapped?' if path.endswith(WEIGHTS) else ''
        lines = [line for line in str(error).splitlines() if line.strip()] or ['']
        raise ConfigError(f'{key}: {path} is not a config ({type(error).__name__}: {lines[0]})'
                          f'{swapped or ": correct the file or name another."}') from error


class Options(DictAction):
    """``--cfg-options`` of a command, with a sentence for one that is not ``key=value``."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: List[str],
                 option_string: Optional[str] = None) -> None:
        """Parse the options."""
        for value in values:
            if not value.partition('=')[0] or '=' not in value:
                parser.error(f'{option_string}: {value} is not key=value')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:
            parser.error(f'{option_string}: {error}')


def merge_options(cfg: Config, options: Optional[Dict[str, Any]]) -> None:
    """Let options override a config, each of a part that there is."""
    for key, value in (options or {}).items():
        check_option(cfg, key)
        try:
            cfg.merge_from_dict({key: value})
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f'--cfg-options {key}: the config has no such place '
                              f'({str(error).splitlines()[0]}); correct the key.') from error
