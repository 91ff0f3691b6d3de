"""Weights by name: Group DETR's published ones, and those of mmdet's model zoo."""
from typing import Optional

from mmengine.hub import get_config

from ..host.preflight import check_path


def resolve_weights(weights: str, published: Optional[str]) -> Optional[str]:
    """Turn ``--weights`` into what ``load_from`` says.

    Args:
        weights (str): 'coco', 'none', or a path or address.
        published (str, optional): What 'coco' means: an address, or ``mmdet::`` and the name of a
            config, whose address mmdet's metafile says.

    Raises:
        ConfigError: If it is the path of no file.
    """
    if weights == 'none' or weights == 'coco' and published is None:
        return None
    if weights != 'coco':
        check_path('--weights', weights)
        return weights
    if published.startswith('mmdet::'):
        return get_config(f'{published}.py', pretrained=True).model_path
    return published
