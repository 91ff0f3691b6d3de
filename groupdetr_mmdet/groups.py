"""The idea of Group DETR: K groups of N queries that never see each other.

Row ``g * N + i`` of the decoder's queries is query ``i`` of group ``g``: a group is N consecutive
rows. Batch first, this makes the fold of the groups into the batch a pure reshape::

    (bs, K * N, C)  ->  (bs * K, N, C)

so that any module which treats the images of a batch independently (self-attention, above all)
treats the groups independently too, with no mask and no copy. The reshape is right only when the
batch comes first: with queries first, ``(K * N, bs, C)``, the same call mixes the rows of
different images and groups and raises no error.

A tensor does not record how many groups it holds in training (K) or at inference (one): its rows
divided by N do. Only the number of rows N of a group is therefore handed around.
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
    """Return how many groups of ``group_size`` rows make ``num_rows``, without a remainder."""
    if num_rows % group_size:
        raise ConfigError(
            f'{num_rows} predictions do not divide into groups of num_queries={group_size}: '
            'the decoder must be given num_query_groups * num_queries rows.')
    return num_rows // group_size


def check_count(key: str, count: int, meaning: str, most: float = math.inf) -> int:
    """Return a number of groups or queries if it is an integer from 1 to ``most``."""
    if type(count) is not int or not 1 <= count <= most:
        limit = f' and at most {most}' if most < math.inf else ''
        raise ConfigError(
            f'{key}={count!r} must be an integer of at least 1{limit}: {meaning}.')
    return count


@contextlib.contextmanager
def decoding(groups: range) -> Iterator[None]:
    """Choose the groups that are decoded while the block runs, in this thread alone."""
    token = _CHOSEN.set(groups)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def chosen_groups() -> Optional[range]:
    """Return the groups that :func:`decoding` chose, None outside of it."""
    return _CHOSEN.get()


def chosen_rows(x: Tensor, num_groups: int) -> Tensor:
    """Take the chosen groups' blocks of rows, ``(K * n, ...) -> (chosen * n, ...)``.

    Outside of :func:`decoding`, all rows are taken.
    """
    groups, size = chosen_groups(), len(x) // num_groups
    return x if groups is None else x[groups.start * size:groups.stop * size]


# Layers of which each group has its own: parameters keep the stock names, and have K blocks of
# rows. Inside `decoding` a layer computes with the chosen groups' blocks.


class GroupLinear(nn.Linear):
    """A linear layer of each group; ``(..., in_features) -> (..., out_features)`` of one group.

    ``weight`` has shape (K * out_features, in_features) and ``bias`` (K * out_features, ).
    """

    def __init__(self, layer: nn.Linear, num_groups: int) -> None:
        super().__init__(
            layer.in_features, num_groups * layer.out_features, layer.bias is not None)
        self.out_features, self.num_groups = layer.out_features, num_groups

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer of the group that is decoded."""
        bias = None if self.bias is None else chosen_rows(self.bias, self.num_groups)
        return F.linear(x, chosen_rows(self.weight, self.num_groups), bias)


class GroupLayerNorm(nn.LayerNorm):
    """A layer normalization of each group, ``weight`` and ``bias`` of shape (K * dim, )."""

    def __init__(self, layer: nn.LayerNorm, num_groups: int) -> None:
        super().__init__(layer.normalized_shape, layer.eps)
        self.weight, self.bias = (
            nn.Parameter(x.detach().repeat(num_groups)) for x in (layer.weight, layer.bias))
        self.num_groups = num_groups

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, shape (..., dim), by the layer of the group that is decoded."""
        weight, bias = (chosen_rows(x, self.num_groups) for x in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class GroupEmbedding(nn.Embedding):
    """The queries of each group; ``weight``, of shape (K * N, dim), shows the chosen groups'.

    mmdet's detectors read the weight of an embedding of queries, and never call it.
    """

    def __init__(self, layer: nn.Embedding, num_groups: int) -> None:
        super().__init__(num_groups * layer.num_embeddings, layer.embedding_dim)
        self.num_groups = num_groups

    @property
    def weight(self) -> Tensor:
        """Rows of the chosen groups, or the parameter itself outside of ``decoding``."""
        return chosen_rows(self.__getattr__('weight'), self.num_groups)


GROUP_LAYERS = {
    nn.Linear: GroupLinear, nn.LayerNorm: GroupLayerNorm, nn.Embedding: GroupEmbedding}


def give_each_group(root: nn.Module, name: str, num_groups: int) -> None:
    """Replace the layers of ``root``'s module ``name``, in place, by layers of each group.

    One group keeps the stock layers.
    """
    for path, layer in list(root.get_submodule(name).named_modules(prefix=name)):
        kind = next((ours for stock, ours in GROUP_LAYERS.items() if isinstance(layer, stock)),
                    None)
        if kind is not None and num_groups > 1:
            parent, _, child = path.rpartition('.')
            setattr(root.get_submodule(parent), child, kind(layer, num_groups))
