"""Layers of which every group has its own: the stock layers, with K blocks of rows.

Parameters keep the stock names; block ``g`` of their rows is that of group ``g``. Inside
:func:`~groupdetr_mmdet.groups.decoding` a layer computes with the chosen groups' blocks.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from .groups import chosen_rows


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
