"""Checkpoints by name: ``best`` and ``last`` of a run, published weights, mmdet's model zoo."""
import os
import zipfile
from pathlib import Path
from typing import Any, Dict, Optional, Union

from mmengine.hub import get_config
from mmengine.runner import CheckpointLoader

from ..errors import ConfigError, warn_once
from ..io import check_path
from ..config import read_config
from .convert import convert
from .reading import load_from_local, read_checkpoint
from .transformers import CONFIG, HUB, fetch, load_from_hub, num_queries_of, read_json

POINTER = 'last_checkpoint'  # mmengine's file with the path of the checkpoint to resume
SCHEME = 'groupdetr://'
DETREX = 'https://github.com/IDEA-Research/detrex-storage/releases/download/'
# Config -> address of published weights, of another codebase
PUBLISHED = dict(group_cond_detr_r50_12e=f'{DETREX}v0.4.0/converted_group_detr_r50_12ep.pth')


def find_checkpoint(checkpoint: str, work_dir: Union[str, Path]) -> str:
    """Return the path of ``best`` or ``last`` in a work directory, or ``checkpoint`` itself.

    Raises:
        ConfigError: If there is no such checkpoint.
    """
    if checkpoint not in ('best', 'last') or Path(checkpoint).exists():
        return checkpoint
    found = (best_checkpoint if checkpoint == 'best' else last_checkpoint)(Path(work_dir))
    if found is None:
        raise ConfigError(f'CHECKPOINT: {work_dir} has no {checkpoint} checkpoint: train first, '
                          'or name a file.')
    return str(found)


def best_checkpoint(work_dir: Path) -> Optional[Path]:
    """Return the checkpoint with the best validation, or None."""
    return max(work_dir.glob('best_*.pth'), key=lambda path: path.stat().st_mtime, default=None)


def last_checkpoint(work_dir: Path) -> Optional[Path]:
    """Return the checkpoint that ``last_checkpoint`` names, None if it is missing."""
    path = named_checkpoint(work_dir)
    return path if path and path.is_file() else None


def named_checkpoint(work_dir: Union[str, Path]) -> Optional[Path]:
    """Return the path in the file ``last_checkpoint``, or None if it is missing or empty.

    In a copied directory the path is of the original: a file of its name in ``work_dir`` counts.
    """
    pointer = Path(work_dir, POINTER)
    name = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    own = Path(work_dir, Path(name).name)
    return (own if own.is_file() else Path(name)) if name else None


def trained_config(checkpoint: str, folder: Optional[Path] = None) -> Optional[Path]:
    """Return the config of a checkpoint that its training wrote into ``folder``, or None.

    ``folder`` is the checkpoint's own by default. The file must have the text of the config in the
    checkpoint: a later training may have replaced ``NAME.py``.
    """
    folder = folder or Path(checkpoint).parent
    files = [*folder.glob('*.py'), *sorted(folder.glob('*/vis_data/config.py'))]
    if not (files and zipfile.is_zipfile(checkpoint)):
        return None
    try:
        text = load_from_local(checkpoint, 'cpu', mmap=True)['meta']['cfg']
    except (ConfigError, KeyError, TypeError):  # not a checkpoint of a run
        return None
    return next((x for x in files if x.is_file() and x.read_text(errors='replace') == text), None)


CheckpointLoader.register_scheme(prefixes=HUB, loader=load_from_hub)


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_published(name: str, map_location: Any = None) -> Dict[str, Any]:
    """Read ``groupdetr://NAME``, the published weights of a config, and convert them."""
    config = name[len(SCHEME):]
    if config not in PUBLISHED:
        raise ConfigError(f'{name}: no weights are published under this name; published are '
                          f'{", ".join(SCHEME + x for x in PUBLISHED)}.')
    converted = convert(read_checkpoint(PUBLISHED[config]), read_config(config).model)
    return dict(meta=converted.meta, state_dict=converted.state_dict)


def resolve_weights(weights: str, published: Optional[str]) -> Optional[str]:
    """Return the value of ``load_from`` for ``--weights``: a path or address, or None.

    ``published`` replaces 'coco': an address, or ``mmdet::`` and the name of a config.
    """
    if weights == 'none' or weights == 'coco' and published is None:
        return None
    if weights != 'coco':
        check_path('--weights', weights, folder=None)
        return weights
    if published.startswith('mmdet::'):
        return get_config(f'{published}.py', pretrained=True).model_path
    return published


def saved_numbers(weights: Optional[str]) -> Dict[str, int]:
    """Return ``num_queries`` and ``num_query_groups`` if a checkpoint has them.

    Local files are read, and the config of a name of the hub. Without a network the result is
    empty.
    """
    if weights and weights.startswith(HUB):
        try:
            return dict(num_queries=num_queries_of(read_json(fetch(weights, [CONFIG]) / CONFIG)))
        except ConfigError as error:
            warn_once(str(error))
            return {}
    if not weights or not os.path.exists(os.path.expanduser(weights)):
        return {}
    checkpoint = read_checkpoint(weights)
    if not isinstance(checkpoint, dict):
        raise ConfigError(f'--weights: {weights} holds no state dict: name a checkpoint.')
    metadata = getattr(checkpoint.get('state_dict', checkpoint), '_metadata', {}).get('', {})
    return {name: metadata[name] for name in ('num_queries', 'num_query_groups')
            if name in metadata}
