"""Attention of the decoder: fused kernels, and self-attention inside each group."""
from typing import Callable, Optional, Tuple, Type

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmdet.models.layers.transformer.utils import ConditionalAttention
from torch import Tensor, nn

from .dropout import dropout_attention, log_unfused
from .errors import ConfigError
from .groups import fold_groups, unfold_groups


def fused_attention(query: Tensor,
                    key: Tensor,
                    value: Tensor,
                    num_heads: int,
                    keep_mask: Optional[Tensor] = None,
                    dropout: float = 0.) -> Tensor:
    """Multi-head attention, ``softmax(q k^T / sqrt(d)) v``, by PyTorch's fused kernels.

    Conditional cross-attention has queries and keys twice as wide as its values. The flash kernels
    want one width, so the values are padded with zeros and the zeros are cut from the result.

    Args:
        query (Tensor): Projected queries, shape (bs, num_queries, d_qk).
        key (Tensor): Projected keys, shape (bs, num_keys, d_qk).
        value (Tensor): Projected values, shape (bs, num_keys, d_v), ``d_v <= d_qk``.
        num_heads (int): Heads, which divide d_qk and d_v.
        keep_mask (Tensor, optional): True where a query may look at a key, broadcastable to
            (bs, num_heads, num_queries, num_keys).
        dropout (float): Probability of dropping an attention weight.

    Returns:
        Tensor: Shape (bs, num_queries, d_v), the heads concatenated.
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    if dropout and query.device.type == 'cpu':
        out = dropout_attention(q, k, v, keep_mask, dropout)
    else:
        padded = F.pad(v, (0, q.size(-1) - v.size(-1)))
        check_fused(q, k, padded, keep_mask, dropout)
        out = F.scaled_dot_product_attention(q, k, padded, attn_mask=keep_mask, dropout_p=dropout)
    return out[..., :v.size(-1)].transpose(1, 2).flatten(2)  # (bs, num_queries, d_v)


def check_fused(query: Tensor, key: Tensor, value: Tensor, keep_mask: Optional[Tensor],
                dropout: float) -> None:
    """Say so once if PyTorch has no fused kernel here; tensors as its attention takes them."""
    if is_compiling():
        return
    kernel = torch._fused_sdp_choice(query, key, value, attn_mask=keep_mask, dropout_p=dropout)
    if kernel == 0:  # SDPBackend.MATH
        log_unfused(f'that of plain matrix products, on {query.device.type} in {query.dtype}: its '
                    'memory grows with the attention map')


# Before torch 2.3 nothing can be asked, and nothing of ours is compiled.
is_compiling = getattr(torch.compiler, 'is_compiling', bool)


def keep_mask(attn_mask: Optional[Tensor], key_padding_mask: Optional[Tensor]) -> Optional[Tensor]:
    """Turn mmdet's masks (True: ignore) into one for the fused kernels (True: take part).

    Args:
        attn_mask (Tensor, optional): Shape (num_queries, num_keys).
        key_padding_mask (Tensor, optional): Shape (bs, num_keys).

    Returns:
        Tensor, optional: Broadcastable to (bs, num_heads, num_queries, num_keys), or None if
        everything takes part.
    """
    ignore = None if attn_mask is None else attn_mask.bool()
    if key_padding_mask is not None:
        padding = key_padding_mask.bool()[:, None, None]
        ignore = padding if ignore is None else ignore | padding
    return None if ignore is None else ~ignore


class FusedConditionalAttention(ConditionalAttention):
    """mmdet's ``ConditionalAttention``, same parameters and results, by fused kernels."""

    def forward_attn(self,
                     query: Tensor,
                     key: Tensor,
                     value: Tensor,
                     attn_mask: Optional[Tensor] = None,
                     key_padding_mask: Optional[Tensor] = None) -> Tuple[Tensor, None]:
        """Attend and project.

        Args:
            query (Tensor): Shape (bs, num_queries, d_qk).
            key (Tensor): Shape (bs, num_keys, d_qk).
            value (Tensor): Shape (bs, num_keys, embed_dims).
            attn_mask (Tensor, optional): True: ignore, shape (num_queries, num_keys).
            key_padding_mask (Tensor, optional): True: ignore, shape (bs, num_keys).

        Returns:
            tuple[Tensor, None]: The output, shape (bs, num_queries, embed_dims), and None in the
            place of the attention weights, which a fused kernel never holds.
        """
        dropout = self.attn_drop.p if self.training else 0.
        out = fused_attention(query, key, value, self.num_heads,
                              keep_mask(attn_mask, key_padding_mask), dropout)
        return self.out_proj(out), None


def count_rows(num_queries: Optional[int], query: Tensor, attn_mask: Optional[Tensor]) -> int:
    """Return the rows of the groups that attend to each other.

    Args:
        num_queries (int, optional): Queries of one group, N, or None where all groups are one.
        query (Tensor): Shape (bs, K * N, dim).
        attn_mask (Tensor, optional): Mask of one group, of N rows, or of more where denoising
            queries ride along in each group.

    Raises:
        ConfigError: If all groups are one and there is a mask, which is that of a single group.
    """
    if num_queries is None and attn_mask is not None:
        raise ConfigError('model.separate_self_attn=False has no mask for denoising queries: take '
                          'a detector without them.')
    if attn_mask is not None:
        return attn_mask.size(-1)
    return query.size(1) if num_queries is None else num_queries


class GroupConditionalAttention(FusedConditionalAttention):
    """Self-attention of Conditional and DAB-DETR inside each group (paper, Section 3.2).

    The queries of a group attend to each other and to no other group.

    Args:
        num_queries (int, optional): Queries of one group, N; None: all groups attend as one.
        kwargs: As for ``ConditionalAttention``.
    """

    def __init__(self, *args, num_queries: Optional[int], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.num_queries = num_queries

    def forward_attn(self,
                     query: Tensor,
                     key: Tensor,
                     value: Tensor,
                     attn_mask: Optional[Tensor] = None,
                     key_padding_mask: Optional[Tensor] = None) -> Tuple[Tensor, None]:
        """Attend inside each group; the tensors have shape (bs, K * N, dim).

        ``attn_mask`` is the mask of one group, so that its size is the size of a group wherever
        more rows than the N queries ride along (denoising queries).
        """
        group_size = count_rows(self.num_queries, query, attn_mask)
        folded = (fold_groups(x, group_size) for x in (query, key, value))
        out, _ = super().forward_attn(*folded, attn_mask=attn_mask)
        return unfold_groups(out, query.size(0)), None


def _skip_weights(module: nn.Module, args: tuple, kwargs: dict) -> Tuple[tuple, dict]:
    return args, dict(kwargs, need_weights=False)


def _sum_as_official(module: nn.Module, args: tuple, kwargs: dict) -> Tuple[tuple, dict]:
    training_on_cpu = kwargs['query'].device.type == 'cpu' and torch.is_grad_enabled()
    return args, dict(kwargs, need_weights=training_on_cpu)


def fuse_multihead_attention(attention: MultiheadAttention,
                             prepare: Callable = _skip_weights) -> None:
    """Let mmcv's ``MultiheadAttention`` run by fused kernels.

    mmcv asks ``torch.nn.MultiheadAttention`` for the attention weights and never reads them;
    asking keeps PyTorch from its fused kernels.

    Args:
        attention (MultiheadAttention): Changed in place; parameters and results stay the same.
        prepare (Callable): Hook that says in which calls the weights are asked for.
    """
    attention.attn.register_forward_pre_hook(prepare, with_kwargs=True)


def fuse_encoder_attention(attention: MultiheadAttention) -> None:
    """Let an encoder's self-attention run by fused kernels, save in training on the CPU.

    There the order of summation of the official code is kept: gradients that flow through the
    encoder of an untrained model are ill-conditioned, and differ by 2e-4 otherwise.

    Args:
        attention (MultiheadAttention): Changed in place; parameters and results stay the same.
    """
    fuse_multihead_attention(attention, _sum_as_official)


class GroupMultiheadAttention(MultiheadAttention):
    """Self-attention of DETR, Deformable DETR and DINO inside each group (paper, Section 3.2).

    Args:
        num_queries (int, optional): Queries of one group, N; None: all groups attend as one.
        kwargs: As for mmcv's ``MultiheadAttention``, batch first.
    """

    def __init__(self, *args, num_queries: Optional[int], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.num_queries = num_queries

    def forward(self,
                query: Tensor,
                key: Optional[Tensor] = None,
                value: Optional[Tensor] = None,
                identity: Optional[Tensor] = None,
                query_pos: Optional[Tensor] = None,
                key_pos: Optional[Tensor] = None,
                attn_mask: Optional[Tensor] = None,
                **kwargs) -> Tensor:
        """Attend inside each group, and add the identity; the tensors have shape (bs, K * N, dim).

        ``attn_mask``, True where a query may not look, is the mask of one group: shape (N, N), or
        larger where denoising queries ride along in each group.
        """
        group_size = count_rows(self.num_queries, query, attn_mask)
        folded = (x if x is None else fold_groups(x, group_size)
                  for x in (query, key, value, identity, query_pos, key_pos))
        return unfold_groups(super().forward(*folded, attn_mask=attn_mask), query.size(0))


GROUP_ATTENTION = {
    ConditionalAttention: GroupConditionalAttention,
    MultiheadAttention: GroupMultiheadAttention
}


def group_self_attention(decoder: nn.Module, num_queries: int) -> None:
    """Keep the self-attention of a decoder's layers inside each group.

    Args:
        decoder (nn.Module): A decoder of mmdet, changed in place; parameters stay the same.
        num_queries (int): Queries of one group, N.

    Raises:
        ConfigError: If a layer's ``self_attn`` is a kind of attention that cannot be grouped.
    """
    for layer in decoder.layers:
        kind = type(layer.self_attn)
        if kind in GROUP_ATTENTION.values():
            continue
        if kind not in GROUP_ATTENTION:
            raise ConfigError(
                f'model.decoder has self-attention of type {kind.__name__}, which has no groups: '
                "use a decoder with mmcv's MultiheadAttention or mmdet's ConditionalAttention.")
        replace_attention(layer, 'self_attn', GROUP_ATTENTION[kind], num_queries=num_queries)
        if kind is MultiheadAttention:
            fuse_multihead_attention(layer.self_attn)


def join_groups(decoder: nn.Module) -> None:
    """Let the queries of all groups attend to each other, an ablation of the paper."""
    for layer in decoder.layers:
        layer.self_attn.num_queries = None


def replace_attention(layer: nn.Module, name: str, attention_type: Type[nn.Module],
                      **kwargs) -> None:
    """Replace a layer's attention by a subclass of it that has the same parameters.

    Args:
        layer (nn.Module): A layer of mmdet, changed in place.
        name (str): 'self_attn' or 'cross_attn'.
        attention_type (type): The subclass.
        kwargs: What the subclass wants beside the layer's config.
    """
    old, new = getattr(layer, name), attention_type(**getattr(layer, f'{name}_cfg'), **kwargs)
    for child, _ in new.named_children():
        setattr(new, child, getattr(old, child))
    setattr(layer, name, new)
