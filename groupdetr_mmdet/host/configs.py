"""The configs that come with the package, by name."""
import difflib
import os.path as osp
from pathlib import Path
from typing import Dict

from mmengine.config import Config

from ..errors import ConfigError

SHIPPED = Path(__file__).parents[1] / '.mim/configs/group_detr'


def shipped_configs() -> Dict[str, Path]:
    """Files of the shipped configs by their names, such as ``demo/cond_detr_demo``."""
    names = {file.relative_to(SHIPPED).with_suffix('').as_posix(): file
             for file in sorted(SHIPPED.rglob('*.py'))}
    return {name: file for name, file in names.items() if not name.startswith('_base_/')}


def find_config(config: str, key: str = 'CONFIG') -> str:
    """Find a config file by its path, or a shipped one by its name, with folder or without.

    Args:
        config (str): Path or name, such as ``demo/cond_detr_demo`` or ``cond_detr_demo``.
        key (str): The argument that names it. Defaults to 'CONFIG'.

    Returns:
        str: Path of the file.

    Raises:
        ConfigError: If there is neither.
    """
    if osp.isfile(config):
        return config
    shipped = shipped_configs()
    by_stem = {file.stem: name for name, file in shipped.items()}
    name = config[:-3] if config.endswith('.py') else config
    name = name if name in shipped else by_stem.get(name)
    if name:
        return str(shipped[name])
    near = difflib.get_close_matches(Path(config).stem, by_stem, n=1, cutoff=0)[0]
    raise ConfigError(f'{key}: {config} does not exist; put it there, or name a shipped config: '
                      f'the nearest name is {by_stem[near]}.')


def read_config(config: str, key: str = 'CONFIG') -> Config:
    """Read the config that :func:`find_config` finds."""
    return Config.fromfile(find_config(config, key))
