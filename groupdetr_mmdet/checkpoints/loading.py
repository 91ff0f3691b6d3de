"""Load weights into a model strictly.

Hooks and an initializer check the weights of ``load_from``, ``--resume`` and ``init_cfg``, because
mmengine would log tensors that do not fit, and continue with a partly random model.
"""
import copy
import logging
import re
from numbers import Integral
from typing import Any, Dict, List, Mapping

import torch
from mmdet.registry import WEIGHT_INITIALIZERS
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..errors import ConfigError
from ..group_detector import GroupDetector, repeat_groups
from ..compat import unwrapped
from .reading import read_checkpoint
from .transformers import fit_model

# Of Conditional DETR; of Deformable DETR; of Mask2Former; and the embedding of noisy labels
CLASS_LAYERS = re.compile(r'(^|\.)(fc_cls|cls_branches|cls_embed|label_embedding)\.')
CLASS_BIAS = re.compile(r'(bbox_head\.(fc_cls|cls_branches\.0)|panoptic_head\.cls_embed)\.bias$')


def weights_of(checkpoint: Any, path: str) -> Dict[str, Tensor]:
    """Return a checkpoint's state dict; see :func:`copy_tensors`."""
    held = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else None
    return copy_tensors(held, path, ', or run groupdetr convert first if it is of other code')


def copy_tensors(held: Any, path: str, advice: str = '') -> Dict[str, Tensor]:
    """Copy a state dict without the prefix ``module.``.

    Raises:
        ConfigError: If it is no state dict, or has NaN or infinite weights.
    """
    if not isinstance(held, Mapping) or not held or not all(
            isinstance(x, Tensor) and x.layout == torch.strided and not x.is_complex()
            for x in held.values()):
        raise ConfigError(f'{path} holds no state dict of tensors (dense and real): name the file '
                          f'of the weights{advice}.')
    wrong = [name for name, x in held.items()
             if x.is_floating_point() and not torch.isfinite(x).all()]
    if wrong:
        raise ConfigError(f'{path} has NaN or infinite weights in {wrong[0]} and {len(wrong) - 1} '
                          'other tensors: its training diverged, take an earlier checkpoint.')
    state_dict = copy.copy(held)
    for prefix in ('_orig_mod.', 'module.', '_orig_mod.'):
        consume_prefix_in_state_dict_if_present(state_dict, prefix)
    return state_dict


def load_weights(model: nn.Module, checkpoint: Any, path: str,
                 allow_missing: bool = False) -> None:
    """Load a checkpoint into a model; all tensors must fit.

    With ``allow_missing`` load the tensors that fit, and log their number. ``path`` is for
    messages.

    Raises:
        ConfigError: If a tensor is missing, left over, of another shape or not finite; with
            ``allow_missing`` if no tensor fits.
    """
    state_dict = weights_of(checkpoint, path)
    if config := (checkpoint.get('meta') or {}).get('transformers'):
        state_dict = fit_model(state_dict, model, config)
    if allow_missing:
        load_fitting(model, state_dict, path)
        return
    try:
        missing, left_over = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        reasons = [str(error).splitlines()[1].strip().rstrip('.')]  # another shape
    else:
        reasons = [f'the model has no {name}' for name in left_over] + [
            f'it has no {name}' for name in missing if not name.endswith('.num_batches_tracked')]
    if reasons:
        raise ConfigError(f'{path} does not fit the config ({reasons[0]}; {len(reasons)} such '
                          'tensors): use the config that it was trained with, or convert it by '
                          'groupdetr convert.')


def load_fitting(model: nn.Module, state_dict: Dict[str, Tensor], path: str) -> None:
    """Load the tensors that fit a model, of any number of groups."""
    own, of_groups = model.state_dict(), group_parameters(model)
    for name, x in list(state_dict.items()):
        if name not in own or name not in of_groups and own[name].shape != x.shape:
            del state_dict[name]
    if not state_dict:
        raise ConfigError(f'{path} has no tensor of this model: name another checkpoint.')
    missing, _ = model.load_state_dict(state_dict, strict=False)
    print_log(f'{path}: {len(state_dict)} of the {len(own)} tensors of the model are loaded; the '
              f'rest, such as {(missing or ["none"])[0]}, keeps its initial values.',
              logger='current', level=logging.WARNING)


@HOOKS.register_module()
class CheckedWeightsHook(Hook):
    """Load ``load_from`` strictly, and check the weights of ``--resume``.

    With ``allow_missing=True`` in the config, load the tensors of ``load_from`` that fit.

    Raises:
        ConfigError: If weights are not finite, or do not fit the model.
    """
    priority = 'LOW'  # after hooks that change the checkpoint

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Check weights to resume; load other weights, so that mmengine's loading fits."""
        path = str(runner._load_from or 'the latest checkpoint')
        model = unwrapped(runner.model)
        if runner._resume:
            check_training(model, weights_of(checkpoint, f'--resume: {path}'),
                           checkpoint.get('meta'), path)
            if not any(isinstance(hook, EMAHook) for hook in runner.hooks):
                take_trained_weights(checkpoint, runner)
            announce_rest(checkpoint, runner, path)
            return
        load_weights(model, checkpoint, path, runner.cfg.get('allow_missing', False))
        checkpoint['state_dict'] = model.state_dict()


def take_trained_weights(checkpoint: Dict[str, Any], runner: Runner) -> None:
    """Replace averaged weights by the weights that the optimizer has changed, in place.

    mmengine's ``EMAHook`` saves the average under ``state_dict``, the others as ``module.NAME``.
    """
    if trained := checkpoint.get('ema_state_dict'):
        checkpoint['state_dict'] = {name: trained.get(f'module.{name}', x)
                                    for name, x in checkpoint['state_dict'].items()}
        runner.logger.warning('The checkpoint averages weights (EMA), and this run does not: add '
                              '--ema to go on averaging.')


def check_training(model: nn.Module, tensors: Dict[str, Any], meta: Any, path: str) -> None:
    """Raise a ConfigError unless a checkpoint has the model's tensors and its progress."""
    own, of_groups = model.state_dict(), group_parameters(model)
    for name in sorted({*own} ^ {*tensors}):
        has = 'the model has no' if name in tensors else 'it has no'
        raise ConfigError(f'--resume: {path} is of another model ({has} {name}): resume with the '
                          'config that it was trained with.')
    for name, x in own.items():
        if x.shape != tensors[name].shape:  # another K fits the model, not the optimizer's state
            key = 'num_classes' if CLASS_LAYERS.search(name) else (
                'num_queries and num_query_groups' if name in of_groups else 'model')
            raise ConfigError(
                f'--resume: {name} has shape {tuple(tensors[name].shape)} in {path} and '
                f'{tuple(x.shape)} in the model: resume with the {key} of the checkpoint, or '
                'start a new run with load_from.')
    if not isinstance(meta, dict) or not all(
            isinstance(meta.get(x), Integral) and meta[x] >= 0 for x in ('epoch', 'iter')):
        raise ConfigError(f'--resume: {path} has weights and no state of a training: start a new '
                          'run with load_from.')


def announce_rest(checkpoint: Dict[str, Any], runner: Runner, path: str) -> None:
    """Warn that the training is finished, or that its optimizer starts anew."""
    unit = 'epoch' if isinstance(runner.train_loop, EpochBasedTrainLoop) else 'iter'
    done, wanted = checkpoint['meta'][unit], getattr(runner.train_loop, f'max_{unit}s')
    if done >= wanted:
        runner.logger.warning(f'{path} is of a finished training, {done} of train_cfg.max_{unit}s='
                              f'{wanted}: raise it to train on.')
    if not checkpoint.get('optimizer'):
        runner.logger.warning(f'{path} has no state of the optimizer, like all best '
                              'checkpoints: the optimizer starts anew.')


@WEIGHT_INITIALIZERS.register_module()  # build_runner replaces `Pretrained` by it
class CheckedPretrainedInit(PretrainedInit):
    """mmengine's ``Pretrained``, whose weights must have all tensors of the module.

    With ``allow_missing`` load the tensors that fit, and log their number.
    """

    def __init__(self, *args, allow_missing: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.allow_missing = allow_missing

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module, or raise a ConfigError."""
        key = f"init_cfg=dict(type='Pretrained', checkpoint='{self.checkpoint}')"
        tensors = weights_of(read_checkpoint(self.checkpoint), key)
        start = f'{self.prefix.rstrip(".")}.' if self.prefix is not None else ''
        tensors = {name: tensors[start + name] for name in module.state_dict()
                   if start + name in tensors}
        if not tensors:
            raise ConfigError(f'{key} has no tensor of this part of the model: name another '
                              'file, or another prefix.')
        load_weights(module, tensors, key, self.allow_missing)
        print_log(f'load model from: {self.checkpoint}', logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


@HOOKS.register_module()
class OtherClassesHook(Hook):
    """Start new classification layers if ``load_from`` has other classes."""
    priority = 'HIGH'  # before EMAHook, which copies `state_dict`

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Put the model's classification layers into the checkpoint, in place."""
        if not runner.cfg.get('resume'):
            checkpoint['state_dict'] = weights_of(checkpoint, str(runner._load_from))
            keep_class_layers(unwrapped(runner.model), checkpoint['state_dict'])


def keep_class_layers(model: nn.Module, state_dict: Dict[str, Tensor]) -> List[str]:
    """Put a model's classification layers into a state dict of other classes, in place.

    Returns their names.
    """
    own, of_groups = model.state_dict(), group_parameters(model)
    saved_classes, num_classes = count_classes(state_dict), count_classes(own)
    if not saved_classes or saved_classes == num_classes:
        return []
    names = [name for name in own if CLASS_LAYERS.search(name) and name in state_dict]
    for name in names:
        num_groups = len(state_dict[name]) // saved_classes
        state_dict[name] = (
            repeat_groups(own[name], model.num_query_groups, num_groups, noise=0., seed=0)
            if name in of_groups else own[name])
    print_log(f'load_from has {saved_classes} classes and the model {num_classes}: the '
              'classification layers start anew, all other layers are loaded.', logger='current')
    return names


def count_classes(tensors: Dict[str, Tensor]) -> int:
    """Return the number of classes of a detector's head, 0 without a head."""
    # Mask2Former has one more output, for no object.
    return next((len(x) - ('cls_embed' in name) for name, x in tensors.items()
                 if CLASS_BIAS.search(name)), 0)


def group_parameters(model: nn.Module) -> Dict[str, nn.Parameter]:
    """Return the parameters with rows for each group, none for other detectors."""
    return dict(model.group_parameters()) if isinstance(model, GroupDetector) else {}
