"""Let what mmengine loads by itself fit: ``load_from``, ``--resume`` and ``init_cfg``.

mmengine's loaders write what does not fit into the log and go on, with a random model.
"""
from numbers import Integral
from typing import Any, Dict

from mmdet.registry import WEIGHT_INITIALIZERS
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from ..errors import ConfigError
from ..host.processes import unwrapped
from .loading import load_weights, weights_of
from .reading import read_checkpoint

# Settings that one kind of optimizer has and others have not
OPTIMIZER_MARKS = {'betas', 'momentum', 'alpha', 'rho', 'etas', 'lambd'}
AVERAGES = ('exp_avg', 'momentum_buffer', 'square_avg')  # have the shape of their parameter


@HOOKS.register_module()
class CheckedWeightsHook(Hook):
    """Refuse weights that are not finite, or not those of the runner's model.

    With ``allow_missing=True`` in the config, ``load_from`` takes the tensors that fit, and the
    log says how many. ``--resume`` wants all of them; their shapes are for
    ``AtomicCheckpointHook`` to compare.
    """
    priority = 'LOW'  # after the hooks that change what was loaded

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Load the weights, which must fit, and leave to mmengine what then fits in any case."""
        path = str(runner._load_from or 'the latest checkpoint')
        model = unwrapped(runner.model)
        if runner._resume:
            tensors = weights_of(checkpoint, f'--resume: {path}')
            check_training(model, tensors, checkpoint.get('meta'), path)
            announce_rest(checkpoint, runner, path)
            if all(x.shape == tensors[name].shape for name, x in model.state_dict().items()):
                check_optimizer(checkpoint.get('optimizer'), runner.optim_wrapper, path)
            return
        load_weights(model, checkpoint, path, runner.cfg.get('allow_missing', False))
        checkpoint['state_dict'] = model.state_dict()


def check_training(model: nn.Module, tensors: Dict[str, Any], meta: Any, path: str) -> None:
    """Refuse to go on with other tensors than the model's, or where it is unknown how far."""
    names = model.state_dict().keys()
    for found, where in ((tensors.keys() - names, 'the model has no'),
                         (names - tensors.keys(), 'it has no')):
        if found:
            raise ConfigError(f'--resume: {path} is of another model ({where} {min(found)}): '
                              'resume with the config that it was trained with.')
    if not isinstance(meta, dict) or not all(
            isinstance(meta.get(x), Integral) and meta[x] >= 0 for x in ('epoch', 'iter')):
        raise ConfigError(f'--resume: {path} holds weights and no training to go on with: begin a '
                          'new one with load_from.')


def announce_rest(checkpoint: Dict[str, Any], runner: Runner, path: str) -> None:
    """Log that the training is finished, or that its optimizer begins anew."""
    loop = runner.train_loop
    unit = 'epoch' if isinstance(loop, EpochBasedTrainLoop) else 'iter'
    done, wanted = checkpoint['meta'][unit], getattr(loop, f'max_{unit}s')
    if done >= wanted:
        runner.logger.warning(f'{path} is of a finished training, {done} of train_cfg.max_{unit}s='
                              f'{wanted}: raise it to train on.')
    if not checkpoint.get('optimizer'):
        runner.logger.warning(f'{path} has no state of the optimizer, as the best checkpoints '
                              'have none: the optimizer starts anew.')


def check_optimizer(saved: Any, wrapper: Any, path: str) -> None:
    """Refuse to go on with the state of another optimizer; several of them are not checked."""
    if not isinstance(wrapper, OptimWrapper) or not saved or 'param_groups' not in saved:
        return
    groups = wrapper.optimizer.param_groups
    old, new = ((set(x[0]) & OPTIMIZER_MARKS, [len(group['params']) for group in x])
                for x in (saved['param_groups'], groups))
    parameters = [parameter for group in groups for parameter in group['params']]
    fits = old == new and all(
        state[key].shape == parameters[index].shape
        for index, state in saved.get('state', {}).items()
        for key in AVERAGES if isinstance(state.get(key), Tensor))
    if not fits:
        raise ConfigError(f'--resume: {path} has the state of another optimizer, or of other '
                          'parameters: resume with the optim_wrapper and the model that it was '
                          'trained with, or begin a new training with load_from.')


@WEIGHT_INITIALIZERS.register_module(name='Pretrained')
class CheckedPretrainedInit(PretrainedInit):
    """mmengine's ``Pretrained``, which refuses weights that leave a part of the module random.

    What the file has beside them, such as a classifier's head, is left out, as there. With
    ``allow_missing`` the tensors that fit are taken, and the log says how many.
    """

    def __init__(self, *args, allow_missing: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.allow_missing = allow_missing

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module, which they must fit."""
        key = f"init_cfg=dict(type='Pretrained', checkpoint='{self.checkpoint}')"
        tensors = weights_of(read_checkpoint(self.checkpoint), key)
        if self.prefix is not None:
            prefix = self.prefix.rstrip('.') + '.'
            tensors = {name[len(prefix):]: x for name, x in tensors.items()
                       if name.startswith(prefix)}
        for name in tensors.keys() - module.state_dict().keys():
            del tensors[name]
        if not tensors:
            raise ConfigError(f'{key} has not one tensor of this part of the model: name another '
                              'file, or another prefix.')
        load_weights(module, tensors, key, self.allow_missing)
        print_log(f'load model from: {self.checkpoint}', logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())
