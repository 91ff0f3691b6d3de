"""Attention by PyTorch's fused kernels."""
from functools import partial
from typing import Optional, Tuple, Type

import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmdet.models.layers.transformer.utils import ConditionalAttention
from torch import Tensor, nn

from .dropout import dropout_attention, fuse_ffn, replace_dropout


def fused_attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int,
                    keep_mask: Optional[Tensor] = None, dropout: float = 0.) -> Tensor:
    """Multi-head attention, ``softmax(q k^T / sqrt(d)) v``, by PyTorch's fused kernels.

    Conditional cross-attention has queries and keys twice as wide as its values. Flash kernels
    require equal widths, so values are padded with zeros, which are cut from the result.

    Args:
        query (Tensor): Projected queries, shape (bs, num_queries, d_qk).
        key (Tensor): Projected keys, shape (bs, num_keys, d_qk).
        value (Tensor): Projected values, shape (bs, num_keys, d_v), ``d_v <= d_qk``.
        num_heads (int): Heads, which divide d_qk and d_v.
        keep_mask (Tensor, optional): True where a query attends to a key, broadcastable to
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
        out = F.scaled_dot_product_attention(q, k, padded, attn_mask=keep_mask, dropout_p=dropout)
    return out[..., :v.size(-1)].transpose(1, 2).flatten(2)  # (bs, num_queries, d_v)


def keep_mask(attn_mask: Optional[Tensor], key_padding_mask: Optional[Tensor]) -> Optional[Tensor]:
    """Combine mmdet's masks (True: ignore) to a mask for the fused kernels (True: attend).

    Args:
        attn_mask (Tensor, optional): Shape (num_queries, num_keys).
        key_padding_mask (Tensor, optional): Shape (bs, num_keys).

    Returns:
        Tensor | None: Broadcastable to (bs, num_heads, num_queries, num_keys), or None without
        masks.
    """
    ignore = None if attn_mask is None else attn_mask.bool()
    if key_padding_mask is not None:
        padding = key_padding_mask.bool()[:, None, None]
        ignore = padding if ignore is None else ignore | padding
    return None if ignore is None else ~ignore


class FusedConditionalAttention(ConditionalAttention):
    """mmdet's ``ConditionalAttention``, same parameters and results, by fused kernels."""

    def forward_attn(self, query: Tensor, key: Tensor, value: Tensor,
                     attn_mask: Optional[Tensor] = None,
                     key_padding_mask: Optional[Tensor] = None) -> Tuple[Tensor, None]:
        """Attend as the parent, and return no attention weights: fused kernels have none."""
        dropout = self.attn_drop.p if self.training else 0.
        out = fused_attention(query, key, value, self.num_heads,
                              keep_mask(attn_mask, key_padding_mask), dropout)
        return self.out_proj(out), None


def fuse_multihead_attention(attention: MultiheadAttention, on_cpu: bool = True) -> None:
    """Let mmcv's ``MultiheadAttention`` use fused kernels, in place; ``on_cpu=False``: GPU alone.

    mmcv requests the attention weights, which it never reads, and which fused kernels do not
    have.
    """
    attention.attn.register_forward_pre_hook(partial(_skip_weights, on_cpu), with_kwargs=True)


def fuse_layer(layer: nn.Module) -> None:
    """Let a layer of mmdet's encoders and decoders use fused kernels, in place.

    Changes the FFN, an encoder's self-attention (on a GPU alone: it has dropout, for which
    PyTorch has no fused kernel on the CPU), and conditional cross-attention. Parameters and
    results stay the same.
    """
    fuse_ffn(layer.ffn)
    replace_dropout(layer)
    cross_attn = getattr(layer, 'cross_attn', None)
    if cross_attn is None and type(layer.self_attn) is MultiheadAttention:
        fuse_multihead_attention(layer.self_attn, on_cpu=False)
    if type(cross_attn) is ConditionalAttention:
        replace_attention(layer, 'cross_attn', FusedConditionalAttention)


def replace_attention(layer: nn.Module, name: str, attention_type: Type[nn.Module],
                      **kwargs) -> None:
    """Replace a layer's 'self_attn' or 'cross_attn' by a subclass with the same parameters.

    ``kwargs`` are arguments of the subclass in addition to the layer's config.
    """
    old, new = getattr(layer, name), attention_type(**getattr(layer, f'{name}_cfg'), **kwargs)
    for child, _ in new.named_children():
        setattr(new, child, getattr(old, child))
    setattr(layer, name, new)


def _skip_weights(on_cpu: bool, module: nn.Module, args: tuple,
                  kwargs: dict) -> Tuple[tuple, dict]:
    return args, dict(kwargs, need_weights=not on_cpu and kwargs['query'].device.type == 'cpu')
