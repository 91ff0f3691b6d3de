"""Self-attention of the decoder inside each group."""
from typing import List, Optional, Tuple

from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmdet.models.layers.transformer.utils import ConditionalAttention
from torch import Tensor, nn

from .errors import ConfigError
from .groups import fold_groups, unfold_groups
from .ops.attention import (FusedConditionalAttention, fuse_multihead_attention, replace_attention)


class InsideGroups:
    """Mixin that keeps self-attention inside each group of queries (paper, Section 3.2).

    Args:
        num_queries (int, optional): Queries of one group, N. None: the queries of all groups
            attend to each other.
        args, kwargs: As for the attention, which must be batch first.
    """

    def __init__(self, *args, num_queries: Optional[int], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.num_queries = num_queries

    def fold(self, attn_mask: Optional[Tensor], query: Tensor,
             *others: Optional[Tensor]) -> List[Optional[Tensor]]:
        """Fold tensors of shape (bs, K * N, dim) to (bs * K, N, dim).

        ``attn_mask`` is the mask of one group, shape (rows, rows), where rows are its denoising
        queries and its N queries.

        Raises:
            ConfigError: If there is a mask, and all groups attend to each other.
        """
        if attn_mask is not None and self.num_queries is None:
            raise ConfigError('model.separate_self_attn=False has no mask for denoising queries: '
                              'use a detector without denoising.')
        size = (self.num_queries or query.size(1)) if attn_mask is None else attn_mask.size(-1)
        return [x if x is None else fold_groups(x, size) for x in (query, *others)]


class GroupConditionalAttention(InsideGroups, FusedConditionalAttention):
    """Self-attention of Conditional and DAB-DETR inside each group."""

    def forward_attn(self, query: Tensor, key: Tensor, value: Tensor,
                     attn_mask: Optional[Tensor] = None,
                     key_padding_mask: Optional[Tensor] = None) -> Tuple[Tensor, None]:
        """Attend inside each group; the tensors have shape (bs, K * N, dim)."""
        folded = self.fold(attn_mask, query, key, value)
        out, _ = super().forward_attn(*folded, attn_mask=attn_mask)
        return unfold_groups(out, query.size(0)), None


class GroupMultiheadAttention(InsideGroups, MultiheadAttention):
    """Self-attention of DETR, Deformable DETR and DINO inside each group."""

    def forward(self, query: Tensor, key: Optional[Tensor] = None, value: Optional[Tensor] = None,
                identity: Optional[Tensor] = None, query_pos: Optional[Tensor] = None,
                key_pos: Optional[Tensor] = None, attn_mask: Optional[Tensor] = None,
                **kwargs) -> Tensor:
        """Attend as mmcv's module inside each group; the tensors have shape (bs, K * N, dim)."""
        folded = self.fold(attn_mask, query, key, value, identity, query_pos, key_pos)
        return unfold_groups(super().forward(*folded, attn_mask=attn_mask), query.size(0))


GROUP_ATTENTION = {ConditionalAttention: GroupConditionalAttention,
                   MultiheadAttention: GroupMultiheadAttention}


def group_self_attention(decoder: nn.Module, num_queries: Optional[int]) -> None:
    """Keep the self-attention of a decoder of mmdet inside each group, in place.

    Parameters stay the same. ``num_queries`` is the number of queries of one group, N; with None
    the queries of all groups attend to each other, an ablation of the paper.

    Raises:
        ConfigError: If the class of a layer's ``self_attn`` has no version with groups.
    """
    for layer in decoder.layers:
        if isinstance(layer.self_attn, InsideGroups):
            layer.self_attn.num_queries = num_queries
            continue
        kind = type(layer.self_attn)
        if kind not in GROUP_ATTENTION:
            raise ConfigError(
                f'model.decoder has self-attention of type {kind.__name__}, which has no groups: '
                "use a decoder with mmcv's MultiheadAttention or mmdet's ConditionalAttention.")
        replace_attention(layer, 'self_attn', GROUP_ATTENTION[kind], num_queries=num_queries)
        if kind is MultiheadAttention:
            fuse_multihead_attention(layer.self_attn)
