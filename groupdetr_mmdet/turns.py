"""Groups in turns: a training step of K groups in the memory of a few.

This is activation checkpointing, some groups at a time (Chen et al., Training Deep Nets with
Sublinear Memory Cost, arXiv:1604.06174). The decoder runs on some groups at a time and
keeps their predictions alone; the backward pass recomputes all else. The losses are computed once,
from the predictions of all groups, by the ordinary criterion.
"""
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .errors import ConfigError
from .groups import check_count

# Where the groups of a prediction are, by its name among the arguments of ``loss_by_feat``
GROUP_DIMS = dict(all_layers_cls_scores=2, all_layers_bbox_preds=2, enc_cls_scores=0,
                  enc_bbox_preds=0)


def decode_in_turns(decode: Callable[[range, Tensor], Dict[str, Any]], num_query_groups: int,
                    groups_at_once: int, memory: Tensor) -> Dict[str, Any]:
    """Decode all K groups, ``groups_at_once`` at a time, and join their predictions in order.

    ``decode`` computes the predictions of some groups, a dict of arguments of ``loss_by_feat``,
    from ``memory``, shape (bs, num_keys, dim), which all groups share.
    """
    turns = []
    for first in range(0, num_query_groups, groups_at_once):
        groups = range(first, min(first + groups_at_once, num_query_groups))
        if groups.stop < num_query_groups:
            turns.append(checkpoint(decode, groups, memory, use_reentrant=False))
        else:  # the backward pass begins with this turn, so that its activations can stay
            turns.append(decode(groups, memory))
    return {name: join(name, [turn[name] for turn in turns]) for name in turns[0]}


def join(name: str, turns: List[Any]) -> Any:
    """Join what the turns have by one name: predictions, or numbers of denoising queries."""
    if turns[0] is None:
        return None
    if name in GROUP_DIMS:
        return torch.cat(turns, GROUP_DIMS[name])
    return {key: sum(turn[key] for turn in turns) for key in turns[0]}


def check_groups_at_once(groups_at_once: Optional[int], num_query_groups: int,
                         separate_self_attn: bool) -> Optional[int]:
    """Return how many groups a turn has, None where all groups are decoded at once.

    Raises:
        ConfigError: If it is no number of groups, or the groups see each other.
    """
    if groups_at_once is None:
        return None
    check_count('model.train_cfg.groups_at_once', groups_at_once,
                'None decodes all groups at once', most=num_query_groups)
    if not separate_self_attn:
        raise ConfigError(
            f'model.train_cfg.groups_at_once={groups_at_once} decodes groups in turns, and '
            'model.separate_self_attn=False lets all groups attend to each other: leave '
            'groups_at_once out.')
    return groups_at_once if groups_at_once < num_query_groups else None
