"""Weights by name: Group DETR's published ones, and those of mmdet's model zoo."""
from typing import Any, Dict, Optional

from mmengine.hub import get_config
from mmengine.runner import CheckpointLoader

from ..errors import ConfigError
from ..host.configs import read_config
from ..host.preflight import check_path
from .convert import convert
from .reading import read_checkpoint

SCHEME = 'groupdetr://'
DETREX = 'https://github.com/IDEA-Research/detrex-storage/releases/download/'
# Names of the configs whose weights were published, for another codebase.
PUBLISHED = dict(
    group_cond_detr_r50_12e=f'{DETREX}v0.4.0/converted_group_detr_r50_12ep.pth')


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_published(name: str, map_location: Any = None) -> Dict[str, Any]:
    """Read ``groupdetr://NAME``: the published weights of a config, as this package names them.

    The file is fetched once and kept as ``torch.hub`` keeps its files.
    """
    config = name[len(SCHEME):]
    if config not in PUBLISHED:
        raise ConfigError(f'{name}: no weights are published under this name; there are '
                          f'{", ".join(SCHEME + x for x in PUBLISHED)}.')
    converted = convert(read_checkpoint(PUBLISHED[config]), read_config(config).model)
    return dict(meta=converted.meta, state_dict=converted.state_dict)


def resolve_weights(weights: str, published: Optional[str]) -> Optional[str]:
    """Turn ``--weights`` into what ``load_from`` says.

    Args:
        weights (str): 'coco', 'none', or a path or address.
        published (str, optional): What 'coco' means: an address, or ``mmdet::`` and the name of a
            config, whose address mmdet's metafile says.
    """
    if weights == 'none' or weights == 'coco' and published is None:
        return None
    if weights != 'coco':
        check_path('--weights', weights)
        return weights
    if published.startswith('mmdet::'):
        return get_config(f'{published}.py', pretrained=True).model_path
    return published
