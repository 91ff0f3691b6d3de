"""Groups in turns: a training step of K groups in the memory of a few.

Activation checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost,
arXiv:1604.06174) of some groups at a time: the forward pass keeps their predictions, and the
backward pass recomputes the decoder. The criterion runs once, on the predictions of all groups.
"""
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .errors import ConfigError
from .groups import check_count

# Argument of ``loss_by_feat`` -> its dimension of groups
GROUP_DIMS = dict(all_layers_cls_scores=2, all_layers_bbox_preds=2, enc_cls_scores=0,
                  enc_bbox_preds=0)


def decode_in_turns(decode: Callable[[range, Tensor], Dict[str, Any]], num_query_groups: int,
                    groups_at_once: int, memory: Tensor) -> Dict[str, Any]:
    """Decode all K groups, ``groups_at_once`` at a time, and concatenate their predictions.

    ``decode(groups, memory)`` returns the predictions of ``groups``, arguments of
    ``loss_by_feat``. ``memory``, shape (bs, num_keys, dim), is shared by all groups.
    """
    turns = []
    for first in range(0, num_query_groups, groups_at_once):
        groups = range(first, min(first + groups_at_once, num_query_groups))
        if groups.stop < num_query_groups:
            turns.append(checkpoint(decode, groups, memory, use_reentrant=False))
        else:  # the backward pass begins here: recomputing this turn would save no memory
            turns.append(decode(groups, memory))
    return {name: join(name, [turn[name] for turn in turns]) for name in turns[0]}


def join(name: str, turns: List[Any]) -> Any:
    """Concatenate the turns' predictions ``name``, or add up their counts of denoising queries."""
    if turns[0] is None:
        return None
    if name in GROUP_DIMS:
        return torch.cat(turns, GROUP_DIMS[name])
    return {key: sum(turn[key] for turn in turns) for key in turns[0]}


def check_groups_at_once(groups_at_once: Optional[int], num_query_groups: int,
                         separate_self_attn: bool) -> Optional[int]:
    """Return the number of groups of a turn, None if all groups are decoded in one pass.

    Raises:
        ConfigError: If ``groups_at_once`` is not from 1 to K, or groups attend to each other.
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
