"""Give a model the weights of a checkpoint, all of them or none."""
import copy
import logging
from typing import Any, Dict, Mapping

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..errors import ConfigError

FIX = 'use the config that it was trained with, or convert it by groupdetr convert.'


def weights_of(checkpoint: Any, path: str) -> Dict[str, Tensor]:
    """Take the weights out of a checkpoint, which must be numbers.

    As in mmengine's loaders, the prefix ``module.`` of a distributed model's tensors is left out.

    Args:
        checkpoint (Any): What :func:`reading.read_checkpoint` returns.
        path (str): Where it was read, for the error message.
    """
    held = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    if not is_state_dict(held):
        raise ConfigError(f'{path} holds no state dict of tensors (real and not sparse ones): '
                          'name the file of the weights; one of another codebase is converted by '
                          'groupdetr convert first.')
    state_dict = copy.copy(held)
    consume_prefix_in_state_dict_if_present(state_dict, 'module.')
    check_finite(state_dict, path)
    return state_dict


def is_state_dict(held: Any) -> bool:
    """Whether something names tensors, none of them complex or sparse."""
    return isinstance(held, Mapping) and bool(held) and all(
        isinstance(x, Tensor) and x.layout == torch.strided and not x.is_complex()
        for x in held.values())


def check_finite(tensors: Mapping[str, Tensor], path: str) -> None:
    """Refuse weights that are NaN or infinite."""
    wrong = [name for name, x in tensors.items()
             if x.is_floating_point() and not torch.isfinite(x).all()]
    if wrong:
        raise ConfigError(f'{path} has NaN or infinite weights in {wrong[0]} and {len(wrong) - 1} '
                          'other tensors: its training diverged, take an earlier checkpoint.')


def load_weights(model: nn.Module, checkpoint: Any, path: str,
                 allow_missing: bool = False) -> None:
    """Load a checkpoint's weights into a model, all of them or none.

    Args:
        model (nn.Module): Gets the weights.
        checkpoint (Any): What :func:`reading.read_checkpoint` returns.
        path (str): Where it was read, for the messages.
        allow_missing (bool): Load the tensors that fit, and log how many. Defaults to False.

    Raises:
        ConfigError: If a tensor is left over, missing, of another shape, or not finite, or if
            none fits.
    """
    state_dict = weights_of(checkpoint, path)
    if allow_missing:
        load_fitting(model, state_dict, path)
        return
    try:
        missing, left_over = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip().rstrip('.')
        raise ConfigError(f'{path} does not fit the config ({reason}): {FIX}') from error
    missing = [name for name in missing if not name.endswith('.num_batches_tracked')]
    if missing or left_over:
        names = ', '.join(([f'it has no {missing[0]}'] if missing else []) +
                          ([f'the model has no {left_over[0]}'] if left_over else []))
        raise ConfigError(f'{path} does not fit the config ({names}; {len(missing)} tensors are '
                          f'missing and {len(left_over)} left over): {FIX}')


def load_fitting(model: nn.Module, state_dict: Dict[str, Tensor], path: str) -> None:
    """Load the tensors that a model has in the same shape, but for the number of groups."""
    own = model.state_dict()
    of_groups = dict(model.group_parameters()) if hasattr(model, 'group_parameters') else {}
    for name in list(state_dict):
        if name not in own or name not in of_groups and own[name].shape != state_dict[name].shape:
            del state_dict[name]
    if not state_dict:
        raise ConfigError(f'{path} has not one tensor of this model: name another checkpoint.')
    missing, _ = model.load_state_dict(state_dict, strict=False)
    print_log(f'{path}: {len(state_dict)} of the {len(own)} tensors of the model are loaded; the '
              f'others, such as {(missing or ["none"])[0]}, keep their start.',
              logger='current', level=logging.WARNING)
