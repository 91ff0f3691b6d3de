"""Groups that take turns: a training step of K groups in the memory of a few.

Groups meet in two places alone: in the encoder's memory, which is computed once, and in the
normalizer of the losses, which counts all K groups. Between the two a step can decode, match and
supervise some groups after the others, forget their activations, and compute them again in the
backward pass (Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174).
Losses and gradients are those of all groups at once.
"""
import contextlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .assigner import OneToManyHungarianAssigner
from .errors import ConfigError
from .ops.recompute import keep_outputs


class AllGroups:
    """A step whose groups are computed all at once: the turn of those who take none."""
    groups: Optional[range] = None  # those that are computed; None: all

    def in_all_turns(self, count: int) -> int:
        """Return how many there are in all turns, of what ``count`` are in this one."""
        return count

    def once_a_step(self, compute: Callable, *args) -> Any:
        """Return ``compute(*args)``, computed in the first turn of a step alone.

        For what does not depend on the turn and must not be computed again, such as an average
        over ranks: in a backward pass it would meet the reduction of the gradients.
        """
        return compute(*args)

    def once_a_turn(self, compute: Callable, *args) -> Any:
        """Return ``compute(*args)``, not computed again in the backward pass.

        For what has no gradient, is small and takes time, such as the matched pairs.
        """
        return compute(*args)


ALL_AT_ONCE = AllGroups()


class Turn(AllGroups):
    """Some of all K groups, computed together, and in most turns again in the backward pass.

    ``shared`` is what the turns of this step have computed for each other.
    """

    def __init__(self, groups: range, num_query_groups: int, shared: 'Results') -> None:
        self.groups, self.num_query_groups = groups, num_query_groups
        self.shared, self.own = shared, Results()
        self.once_a_step, self.once_a_turn = self.shared.get, self.own.get

    def in_all_turns(self, count: int) -> int:
        """Return how many a count of this turn is in all turns together."""
        return count * self.num_query_groups // len(self.groups)


class Results:
    """Results in the order in which they are asked for, which every turn asks for alike."""

    def __init__(self) -> None:
        self.results: List[Any] = []
        self.asked = 0

    def get(self, compute: Callable, *args) -> Any:
        """Return the next result, computed if no turn before has asked for it."""
        if self.asked == len(self.results):
            self.results.append(compute(*args))
        self.asked += 1
        return self.results[self.asked - 1]


@contextlib.contextmanager
def taking(turn: Turn, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let a detector and its head compute the groups of a turn; it can decorate a function."""
    turn.shared.asked = turn.own.asked = 0
    for module in modules:
        module.turn = turn
    try:
        yield
    finally:
        for module in modules:
            module.turn = ALL_AT_ONCE


def losses_in_turns(modules: Sequence[nn.Module], groups_at_once: int, num_query_groups: int,
                    compute_losses: Callable[..., Dict[str, Tensor]],
                    *memory: Tensor) -> Dict[str, Tensor]:
    """Add up the losses of all groups, some groups at a time.

    Args:
        modules (list[nn.Module]): Detector and head, given their ``turn``.
        groups_at_once (int): Groups of a turn; the last one may have fewer.
        num_query_groups (int): Number of all groups, K.
        compute_losses (Callable): Computes, from ``memory``, the part of the losses that the
            groups of the turn have.
        memory (Tensor): What all groups share. PyTorch asks these tensors on which devices the
            state of the random generators must be kept.

    Returns:
        dict[str, Tensor]: The losses of all groups.
    """
    shared, totals = Results(), {}
    for first in range(0, num_query_groups, groups_at_once):
        groups = range(first, min(first + groups_at_once, num_query_groups))
        take_turn = taking(Turn(groups, num_query_groups, shared), modules)(compute_losses)
        if groups.stop < num_query_groups:
            losses = checkpoint(take_turn, *memory, use_reentrant=False,
                                context_fn=keep_outputs)
        else:  # the backward pass begins with this turn, so that its activations can stay
            losses = take_turn(*memory)
        for name, loss in losses.items():
            totals[name] = totals[name] + loss if name in totals else loss
    return totals


def check_groups_at_once(groups_at_once: Optional[int], num_query_groups: int,
                         separate_self_attn: bool, head: nn.Module) -> Optional[int]:
    """Return how many groups a turn has, None where all groups are computed at once.

    Raises:
        ConfigError: If it is no number of groups, the groups see each other, or the head needs
            the predictions of all of them.
    """
    if groups_at_once is None:
        return None
    if type(groups_at_once) is not int or not 1 <= groups_at_once <= num_query_groups:
        raise ConfigError(
            f'model.train_cfg.groups_at_once={groups_at_once!r} must be an integer from 1 to '
            f'model.num_query_groups={num_query_groups}, or None for all groups at once.')
    for key, value, is_together in (
        ('separate_self_attn', separate_self_attn, not separate_self_attn),
        ('train_cfg.assigner.type', type(head.assigner).__name__,
         isinstance(head.assigner, OneToManyHungarianAssigner)),
        ('bbox_head.type', type(head).__name__, not hasattr(head, 'turn'))):
        if is_together:
            raise ConfigError(
                f'model.train_cfg.groups_at_once={groups_at_once} lets groups take turns, and '
                f'model.{key}={value} needs all groups together: leave groups_at_once out.')
    return groups_at_once if groups_at_once < num_query_groups else None
