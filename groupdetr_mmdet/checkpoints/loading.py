"""Give a model the weights of a checkpoint, all of them or none."""
import copy
from typing import Any

from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from ..errors import ConfigError


def load_weights(model: nn.Module, checkpoint: Any, path: str) -> None:
    """Load a checkpoint's weights into a model, all of them or none.

    mmengine's loaders report a tensor that does not fit in the log and go on. As in theirs, the
    prefix ``module.`` of a distributed model's tensors is left out.

    Args:
        model (nn.Module): Gets the weights.
        checkpoint (Any): What :func:`read_checkpoint` returns.
        path (str): Where it was read, for the error message.

    Raises:
        ConfigError: If a tensor is left over, missing or of another shape.
    """
    state_dict = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else {}
    state_dict = copy.copy(state_dict)
    consume_prefix_in_state_dict_if_present(state_dict, 'module.')
    fix = 'use the config that it was trained with, or convert it by tools/convert_checkpoint.py.'
    try:
        missing, left_over = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip().rstrip('.')
        raise ConfigError(f'{path} does not fit the config ({reason}): {fix}') from error
    missing = [name for name in missing if not name.endswith('.num_batches_tracked')]
    if missing or left_over:
        names = ', '.join(([f'it has no {missing[0]}'] if missing else []) +
                          ([f'the model has no {left_over[0]}'] if left_over else []))
        raise ConfigError(f'{path} does not fit the config ({names}; {len(missing)} tensors are '
                          f'missing and {len(left_over)} left over): {fix}')
