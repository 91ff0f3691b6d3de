"""Checks of a config and of paths that take milliseconds and save a traceback after the work."""
import inspect
import os
import os.path as osp
from pathlib import Path
from typing import Iterator, Optional, Sequence, Tuple, Union

from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict

from .errors import ConfigError
from .group_detector import GroupDetector
from .config_check import iter_dicts
from .io import irregular


def check_paths(cfg: Config, modes: Sequence[str] = ('train', 'val', 'test')) -> None:
    """Check that every local file and directory that a config names is there.

    These are, for the ``modes`` that will run, the annotation files and image directories of the
    data sets, also inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``, the annotation
    files of the evaluators, ``load_from``, and, where the model is trained, the pretrained weights
    of its parts.
    """
    if not cfg.get(f'{modes[0]}_dataloader'):
        raise ConfigError(f'{modes[0]}_dataloader is missing: write it into the config.')
    for mode in modes:
        for key, dataset in iter_datasets(cfg.get(f'{mode}_dataloader'), f'{mode}_dataloader'):
            check_dataset(key, dataset)
        evaluators = cfg.get(f'{mode}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if not isinstance(evaluator, dict):
                raise ConfigError(f'{mode}_evaluator has {evaluator!r}, and a metric is a dict '
                                  'with its type: correct it.')
            check_path(f'{mode}_evaluator.ann_file', evaluator.get('ann_file'))
    if not osp.isdir(cfg.get('load_from') or ''):  # as DeepSpeed's checkpoints are
        check_path('--resume' if cfg.get('resume') else 'load_from', cfg.get('load_from'))
    for key, part in iter_dicts(cfg.get('model'), 'model') if 'train' in modes else ():
        if part.get('type') == 'Pretrained':
            check_path(f'{key}.checkpoint', part.get('checkpoint'))


def iter_datasets(cfg: Optional[ConfigDict], key: str) -> Iterator[Tuple[str, ConfigDict]]:
    """Yield the config key and the config of every data set inside a loader or wrapper."""
    if not cfg:
        return
    parts = {'dataset': cfg.get('dataset'),
             **{f'datasets[{i}]': x for i, x in enumerate(cfg.get('datasets', ()))}}
    inner = {f'{key}.{name}': x for name, x in parts.items() if isinstance(x, dict)}
    if not inner:
        yield key, cfg
    for inner_key, inner_cfg in inner.items():
        yield from iter_datasets(inner_cfg, inner_key)


def check_dataset(key: str, dataset: ConfigDict) -> None:
    """Check the paths of one data set, joined to its ``data_root`` as mmengine joins them."""
    if (dataset.get('backend_args') or {}).get('backend', 'local') != 'local':
        return
    root = dataset.get('data_root') or ''
    root_key = f'{key}.data_root' if root else None
    if dataset.get('ann_file'):
        check_path(f'{key}.ann_file', osp.join(root, dataset.ann_file), root_key)
    for name, prefix in (dataset.get('data_prefix') or {}).items():
        if not isinstance(prefix, str):
            raise ConfigError(f'{key}.data_prefix.{name}={prefix!r} must be a text.')
        check_path(f'{key}.data_prefix.{name}', osp.join(root, prefix), root_key, folder=True)


def check_path(key: str, path: Optional[str], root_key: Optional[str] = None,
               folder: bool = False) -> None:
    """Check that a file, or ``folder``, is there, unless the path is empty or an address.

    ``key`` is the config key or argument that names the path, and ``root_key`` that of the
    directory that it starts with.
    """
    if not path or '://' in path:
        return
    place = osp.expanduser(path)
    keys = f'{root_key} or {key}' if root_key else key
    if not osp.exists(place):
        raise ConfigError(f'{key}: {path} does not exist; put it there or correct {keys}.')
    if folder != osp.isdir(place) or not folder and irregular(place):
        wanted = 'folder' if folder else 'file'
        raise ConfigError(f'{key}: {path} is {irregular(place) or "a file"} and not a {wanted}: '
                          f'correct {keys}.')


def check_output(key: str, path: Union[str, Path], kind: str = 'a file',
                 suffixes: Sequence[str] = ()) -> None:
    """Check that ``path``, which the argument ``key`` names, can be a file of some kind.

    Directories are made where they are missing.
    """
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise ConfigError(f'{key}: {path} is not the name of {kind}; let it end in '
                          f'{", ".join(suffixes)}.')
    if there := irregular(path or '.'):  # a device would be replaced by the file
        raise ConfigError(f'{key} {path} is {there} and must be a file: name another path.')
    for folder in Path(path).parents:
        if osp.lexists(folder) and not osp.isdir(folder):
            raise ConfigError(f'{key} {path} cannot be written, because {folder} is no directory: '
                              'name another path.')
    folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not os.access(folder, os.W_OK):
        raise ConfigError(f'{key} {path} cannot be written, because {folder} is read-only: name '
                          'another path, or correct its permissions.')


def check_groups(key: str, model: ConfigDict) -> None:
    """Check that a model, whose config ``key`` names, is a detector with groups, of whatever K."""
    name = model.get('type') if isinstance(model, dict) else None
    detector = MODELS.get(name) if isinstance(name, str) else name
    if not (inspect.isclass(detector) and issubclass(detector, GroupDetector)):
        raise ConfigError(f'{key}: model.type={name} has no groups of queries; choose a '
                          'config of a detector with groups, such as GroupConditionalDETR.')
