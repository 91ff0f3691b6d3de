"""Give a model the weights of a checkpoint: all of them or none, or all but its class layers."""
import copy
import logging
import re
from typing import Any, Dict, List, Mapping

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..errors import ConfigError
from ..group_detector import GroupDetector, repeat_groups
from ..host.processes import unwrapped

# DETR's and Conditional DETR's, the later ones', Mask2Former's, and the embedding of noisy labels
CLASS_LAYERS = re.compile(r'(^|\.)(fc_cls|cls_branches|cls_embed|label_embedding)\.')
CLASS_BIAS = re.compile(r'(bbox_head\.(fc_cls|cls_branches\.0)|panoptic_head\.cls_embed)\.bias$')
FIX = 'use the config that it was trained with, or convert it by groupdetr convert.'


def weights_of(checkpoint: Any, path: str) -> Dict[str, Tensor]:
    """Take the weights, which must be numbers, out of a checkpoint that was read at a path.

    As in mmengine's loaders, the prefix ``module.`` of a distributed model's tensors is left out.
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
    """Load the weights of a checkpoint, read at a path, into a model, all of them or none.

    With ``allow_missing`` the tensors that fit are loaded, and the log says how many.

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
    own, of_groups = model.state_dict(), group_parameters(model)
    for name in list(state_dict):
        if name not in own or name not in of_groups and own[name].shape != state_dict[name].shape:
            del state_dict[name]
    if not state_dict:
        raise ConfigError(f'{path} has not one tensor of this model: name another checkpoint.')
    missing, _ = model.load_state_dict(state_dict, strict=False)
    print_log(f'{path}: {len(state_dict)} of the {len(own)} tensors of the model are loaded; the '
              f'others, such as {(missing or ["none"])[0]}, keep their start.',
              logger='current', level=logging.WARNING)


# Of a detector of other classes


@HOOKS.register_module()
class OtherClassesHook(Hook):
    """Leave the layers that name classes out of ``load_from`` where the classes are others.

    They keep their start; one line of the log says so. mmengine leaves them out, too, and writes
    a line for each of their tensors.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Give the checkpoint the model's own class layers, in place."""
        if not runner.cfg.get('resume'):
            weights_of(checkpoint, str(runner._load_from))  # refuses what has none
            keep_class_layers(unwrapped(runner.model), checkpoint.get('state_dict', checkpoint))


def keep_class_layers(model: nn.Module, state_dict: Dict[str, Tensor]) -> List[str]:
    """Put a model's class layers into a state dict of other classes; return their names."""
    own = model.state_dict()
    saved_classes, num_classes = count_classes(state_dict), count_classes(own)
    if not saved_classes or saved_classes == num_classes:
        return []
    names = [name for name in own if CLASS_LAYERS.search(name) and name in state_dict]
    of_groups = group_parameters(model)
    for name in names:
        num_groups = len(state_dict[name]) // saved_classes
        state_dict[name] = (
            repeat_groups(own[name], model.num_query_groups, num_groups, noise=0., seed=0)
            if name in of_groups else own[name])
    print_log(f'load_from has {saved_classes} classes and the model {num_classes}: the layers '
              'that name them are left out, all others are loaded.', logger='current')
    return names


def count_classes(tensors: Dict[str, Tensor]) -> int:
    """Number of classes of a detector's head, 0 where there is none."""
    # Mask2Former's has one more, of no object.
    return next((len(x) - ('cls_embed' in name) for name, x in tensors.items()
                 if CLASS_BIAS.search(name)), 0)


def group_parameters(model: nn.Module) -> Dict[str, nn.Parameter]:
    """The parameters of which each group has its own rows; none without groups."""
    return dict(model.group_parameters()) if isinstance(model, GroupDetector) else {}
