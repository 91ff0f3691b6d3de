"""How much memory a training step takes with other numbers of groups at once."""
from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..group_detector import GroupDetector
from ..turns import Results, Turn, check_groups_at_once, taking

GPU_SIZES = (8, 12, 16, 24, 48, 80)  # GiB


class Forecast(NamedTuple):
    """Peak memory by the number of groups that are computed at once.

    Attributes:
        peak (int): Measured peak in bytes, with ``measured_groups`` at once.
        measured_groups (int): Groups at once when it was measured.
        group (int): Bytes that a group adds, see :func:`bytes_of_a_group`.
        num_query_groups (int): Number of all groups, K.
    """
    peak: int
    measured_groups: int
    group: int
    num_query_groups: int

    def peak_of(self, groups_at_once: int) -> int:
        """Return the peak in bytes of a step that computes some groups at once."""
        return self.peak + (groups_at_once - self.measured_groups) * self.group

    def fitting(self, memory: int) -> Optional[int]:
        """Return how many groups at once fit into some bytes of memory, None if not one does."""
        fit = [n for n in range(1, self.num_query_groups + 1) if self.peak_of(n) <= memory]
        return max(fit, default=None)

    def describe(self, memory: Optional[int] = None) -> str:
        """Say what all groups take and what one at a time takes, and what fits.

        Args:
            memory (int, optional): Bytes of the GPU. None: say it of common sizes.
        """
        sizes = [memory] if memory else [size * 2**30 for size in GPU_SIZES]
        fits = [(size, self.fitting(size)) for size in sizes]
        fits = [f'{n} in {size / 2**30:.0f} GiB' for size, n in fits if n is not None]
        if not memory:  # sizes in which all groups fit are all alike
            is_all = [x.startswith(f'{self.num_query_groups} in') for x in fits]
            fits = fits[:is_all.index(True) + 1] if True in is_all else fits
        return (f'{self.peak_of(self.num_query_groups) / 2**30:.1f} GiB with all '
                f'{self.num_query_groups} groups at once, {self.peak_of(1) / 2**30:.1f} GiB with '
                f'groups_at_once=1; fitting: {", ".join(fits) or "none"}')


def make_forecast(model: nn.Module, data: dict, peak: int) -> Optional[Forecast]:
    """Forecast from one measured peak; None for a detector whose groups cannot take turns.

    Args:
        model (nn.Module): The detector, in training mode.
        data (dict): A batch, as the data loader gives it.
        peak (int): Peak memory in bytes of its steps.
    """
    if not isinstance(model, GroupDetector) or model.num_query_groups == 1:
        return None
    num_groups = model.num_query_groups
    try:
        check_groups_at_once(1, num_groups, model.separate_self_attn, model.bbox_head)
    except ConfigError:
        return None
    return Forecast(peak, model.groups_at_once or num_groups, bytes_of_a_group(model, data),
                    num_groups)


def bytes_of_a_group(model: nn.Module, data: dict) -> int:
    """Count what a step keeps for the backward pass of one group more; arguments as above."""
    batch = model.data_preprocessor(data, True)
    groups_at_once, model.groups_at_once = model.groups_at_once, None
    try:
        kept = []
        for num_groups in (1, 2):
            turn = Turn(range(num_groups), model.num_query_groups, Results())
            with taking(turn, (model, model.bbox_head)):
                kept.append(kept_bytes(
                    lambda: model.loss(batch['inputs'], batch['data_samples'])))
    finally:
        model.groups_at_once = groups_at_once
    return kept[1] - kept[0]


def kept_bytes(compute: Callable[[], object]) -> int:
    """Count the bytes that autograd keeps of a computation, each tensor once."""
    kept = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x  # alive as long as the result, so that no address comes twice

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = compute()
    del result
    return sum(kept.values())
