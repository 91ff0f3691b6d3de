"""Checkpoints by name: ``best`` and ``last`` of a run, published weights, mmdet's model zoo."""
import os
import zipfile
from pathlib import Path
from typing import Any, Dict, Optional, Union

from mmengine.hub import get_config
from mmengine.runner import CheckpointLoader

from ..errors import ConfigError
from ..io import check_path
from ..config import read_config
from .convert import convert
from .reading import load_from_local, read_checkpoint
from .transformers import HUB, load_from_hub

POINTER = 'last_checkpoint'  # the file in which mmengine names the checkpoint to resume
SCHEME = 'groupdetr://'
DETREX = 'https://github.com/IDEA-Research/detrex-storage/releases/download/'
# Names of the configs whose weights were published, for another codebase.
PUBLISHED = dict(group_cond_detr_r50_12e=f'{DETREX}v0.4.0/converted_group_detr_r50_12ep.pth')


def find_checkpoint(checkpoint: str, work_dir: Union[str, Path]) -> str:
    """Turn ``best`` or ``last`` of a run into a path; leave any other name."""
    if checkpoint not in ('best', 'last') or Path(checkpoint).exists():
        return checkpoint
    found = (best_checkpoint if checkpoint == 'best' else last_checkpoint)(Path(work_dir))
    if found is None:
        raise ConfigError(f'CHECKPOINT: {work_dir} has no {checkpoint} checkpoint: train first, '
                          'or name a file.')
    return str(found)


def best_checkpoint(work_dir: Path) -> Optional[Path]:
    """The checkpoint with the best validation, None where none was kept."""
    return max(work_dir.glob('best_*.pth'), key=lambda path: path.stat().st_mtime, default=None)


def last_checkpoint(work_dir: Path) -> Optional[Path]:
    """The checkpoint that ``last_checkpoint`` names; the directory may have been copied."""
    path = named_checkpoint(work_dir)
    return path and next((x for x in (work_dir / path.name, path) if x.is_file()), None)


def named_checkpoint(work_dir: Union[str, Path]) -> Optional[Path]:
    """Path that ``last_checkpoint`` names, or None where it is missing or empty."""
    pointer = Path(work_dir, POINTER)
    name = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    return Path(name) if name else None


def trained_config(checkpoint: str) -> Optional[Path]:
    """Return the config that the training of a checkpoint wrote beside it, None without one.

    A later training may have replaced ``NAME.py`` in a folder. The checkpoint holds the text.
    """
    folder = Path(checkpoint).parent
    files = [*folder.glob('*.py'), *sorted(folder.glob('*/vis_data/config.py'))]
    if not (files and zipfile.is_zipfile(checkpoint)):
        return None
    try:
        text = load_from_local(checkpoint, 'cpu', mmap=True)['meta']['cfg']
    except (ConfigError, KeyError, TypeError):  # not of a run: whoever needs the weights checks
        return None
    return next((x for x in files if x.is_file() and x.read_text(errors='replace') == text), None)


CheckpointLoader.register_scheme(prefixes=HUB, loader=load_from_hub)


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_published(name: str, map_location: Any = None) -> Dict[str, Any]:
    """Read ``groupdetr://NAME``: the published weights of a config, as this package names them."""
    config = name[len(SCHEME):]
    if config not in PUBLISHED:
        raise ConfigError(f'{name}: no weights are published under this name, but under '
                          f'{", ".join(SCHEME + x for x in PUBLISHED)}.')
    converted = convert(read_checkpoint(PUBLISHED[config]), read_config(config).model)
    return dict(meta=converted.meta, state_dict=converted.state_dict)


def resolve_weights(weights: str, published: Optional[str]) -> Optional[str]:
    """Turn ``--weights`` into the value of ``load_from``: a path or address, or None.

    ``published`` is what 'coco' means: an address, or ``mmdet::`` and the name of a config.
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
    """Return ``num_queries`` and ``num_query_groups`` as a local checkpoint records them."""
    if not weights or not os.path.exists(os.path.expanduser(weights)):
        return {}
    checkpoint = read_checkpoint(weights)
    if not isinstance(checkpoint, dict):
        raise ConfigError(f'--weights: {weights} holds no state dict: name a checkpoint.')
    metadata = getattr(checkpoint.get('state_dict', checkpoint), '_metadata', {}).get('', {})
    return {name: metadata[name] for name in ('num_queries', 'num_query_groups')
            if name in metadata}
