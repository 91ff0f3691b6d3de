"""The idea of Group DETR: K groups of N queries that never see each other.

Row ``g * N + i`` of the decoder's queries is query ``i`` of group ``g``: a group is N consecutive
rows. Batch first, this makes the fold of the groups into the batch a pure reshape::

    (bs, K * N, C)  ->  (bs * K, N, C)

A module that treats the images of a batch independently, such as self-attention, then treats the
groups independently too, with no mask and no copy. The batch must come first: with queries first,
``(K * N, bs, C)``, the reshape mixes the rows of different images and groups without an error.

Functions take the number of rows N of a group. The number of groups of a tensor, K in training
and one at inference, is its number of rows divided by N.
"""
import contextlib
import math
from contextvars import ContextVar
from typing import Iterator, Optional

import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError

_CHOSEN: ContextVar[Optional[range]] = ContextVar('chosen_groups', default=None)


def fold_groups(x: Tensor, group_size: int) -> Tensor:
    """Move the groups into the batch: ``(bs, K * N, C) -> (bs * K, N, C)``.

    Args:
        x (Tensor): Rows of all groups, shape (bs, K * N, C).
        group_size (int): Rows of one group, N.

    Returns:
        Tensor: Shape (bs * K, N, C); entry ``b * K + g`` is group ``g`` of image ``b``.

    Raises:
        ConfigError: If the rows do not divide into groups of ``group_size``.
    """
    count_groups(x.size(1), group_size)
    return x.reshape(-1, group_size, x.size(2))  # (bs * K, N, C)


def unfold_groups(x: Tensor, batch_size: int) -> Tensor:
    """Undo :func:`fold_groups`: ``(bs * K, N, C) -> (bs, K * N, C)``."""
    return x.reshape(batch_size, -1, x.size(-1))  # (bs, K * N, C)


def count_groups(num_rows: int, group_size: int) -> int:
    """Return ``num_rows / group_size``, the number of groups.

    Raises:
        ConfigError: If ``num_rows`` is not a multiple of ``group_size``.
    """
    if num_rows % group_size:
        raise ConfigError(
            f'{num_rows} predictions do not divide into groups of num_queries={group_size}: '
            'the decoder requires num_query_groups * num_queries rows.')
    return num_rows // group_size


def check_count(key: str, count: int, meaning: str, most: float = math.inf) -> int:
    """Return ``count`` if it is an integer from 1 to ``most``.

    Raises:
        ConfigError: If it is not. The message calls it ``key`` and explains it by ``meaning``.
    """
    if type(count) is not int or not 1 <= count <= most:
        limit = f' and at most {most}' if most < math.inf else ''
        raise ConfigError(
            f'{key}={count!r} must be an integer of at least 1{limit}: {meaning}.')
    return count


@contextlib.contextmanager
def decoding(groups: range) -> Iterator[None]:
    """Choose the groups to decode inside a ``with`` block, for this thread."""
    token = _CHOSEN.set(groups)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def chosen_groups() -> Optional[range]:
    """Return the groups that :func:`decoding` chose, or None outside of its block."""
    return _CHOSEN.get()


def chosen_rows(x: Tensor, num_groups: int) -> Tensor:
    """Select the rows of the chosen groups, ``(K * n, ...) -> (chosen * n, ...)``.

    Outside of :func:`decoding`, return all rows.
    """
    groups, size = chosen_groups(), len(x) // num_groups
    return x if groups is None else x[groups.start * size:groups.stop * size]


# Layers whose parameters have K blocks of rows, a block for each group, under the stock names.
# Inside `decoding` a layer computes with the blocks of the chosen groups.


class GroupLinear(nn.Linear):
    """K linear layers, stacked; choose a group before ``forward``.

    ``weight`` has shape (K * out_features, in_features), ``bias`` (K * out_features, ).
    """

    def __init__(self, layer: nn.Linear, num_groups: int) -> None:
        super().__init__(
            layer.in_features, num_groups * layer.out_features, layer.bias is not None)
        self.out_features, self.num_groups = layer.out_features, num_groups

    def forward(self, x: Tensor) -> Tensor:
        """Apply the chosen group's layer, ``(..., in_features) -> (..., out_features)``."""
        bias = None if self.bias is None else chosen_rows(self.bias, self.num_groups)
        return F.linear(x, chosen_rows(self.weight, self.num_groups), bias)


class GroupLayerNorm(nn.LayerNorm):
    """K layer normalizations, stacked; choose a group before ``forward``.

    ``weight`` and ``bias`` have shape (K * dim, ).
    """

    def __init__(self, layer: nn.LayerNorm, num_groups: int) -> None:
        super().__init__(layer.normalized_shape, layer.eps)
        self.weight, self.bias = (
            nn.Parameter(x.detach().repeat(num_groups)) for x in (layer.weight, layer.bias))
        self.num_groups = num_groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, shape (..., dim), by the chosen group's layer."""
        weight, bias = (chosen_rows(x, self.num_groups) for x in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class GroupEmbedding(nn.Embedding):
    """K embeddings of N queries, stacked; the parameter ``weight`` has shape (K * N, dim).

    mmdet's detectors read ``weight``, which inside :func:`decoding` has the rows of the chosen
    groups, and never call the embedding.
    """

    def __init__(self, layer: nn.Embedding, num_groups: int) -> None:
        super().__init__(num_groups * layer.num_embeddings, layer.embedding_dim)
        self.num_groups = num_groups

    @property
    def weight(self) -> Tensor:
        """Rows of the chosen groups, or outside of :func:`decoding` the parameter itself."""
        return chosen_rows(self.__getattr__('weight'), self.num_groups)


GROUP_LAYERS = {
    nn.Linear: GroupLinear, nn.LayerNorm: GroupLayerNorm, nn.Embedding: GroupEmbedding}


def give_each_group(root: nn.Module, name: str, num_groups: int) -> None:
    """Replace the layers inside ``root``'s module ``name`` by stacks of K layers, in place.

    With one group the stock layers stay.
    """
    for path, layer in list(root.get_submodule(name).named_modules(prefix=name)):
        kind = next((ours for stock, ours in GROUP_LAYERS.items() if isinstance(layer, stock)),
                    None)
        if kind is not None and num_groups > 1:
            parent, _, child = path.rpartition('.')
            setattr(root.get_submodule(parent), child, kind(layer, num_groups))
