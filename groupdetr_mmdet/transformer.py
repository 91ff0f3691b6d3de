"""Encoder, decoder and decoder layer of Group Conditional DETR."""
from typing import Optional, Tuple

import torch
from mmdet.models.layers import (ConditionalDetrTransformerDecoder,
                                 ConditionalDetrTransformerDecoderLayer, DetrTransformerEncoder)
from mmdet.models.layers.transformer.utils import coordinate_to_encoding
from mmdet.registry import MODELS
from mmengine.model import ModuleList
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import (FusedConditionalAttention, GroupConditionalAttention,
                        fuse_encoder_attention)
from .dropout import fuse_ffn


class FusedDetrTransformerEncoder(DetrTransformerEncoder):
    """mmdet's ``DetrTransformerEncoder``, same parameters and results, by fused kernels."""

    def _init_layers(self) -> None:
        super()._init_layers()
        for layer in self.layers:
            fuse_encoder_attention(layer.self_attn)
            fuse_ffn(layer.ffn)


class RecomputedLayer:
    """Mixin of a decoder layer whose activations the backward pass computes again."""

    def forward(self, *args, **kwargs) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)


def recompute_layers(decoder: nn.Module, num_cp: int) -> None:
    """Trade time for memory in the first layers of a decoder, as ``num_cp`` of mmdet's encoders.

    Args:
        decoder (nn.Module): A decoder of mmdet, changed in place; parameters and results stay.
        num_cp (int): Number of layers; -1 and 0 are none.
    """
    for layer in decoder.layers[:max(0, num_cp)]:
        kind = type(layer)
        layer.__class__ = type(f'Recomputed{kind.__name__}', (RecomputedLayer, kind), {})


@MODELS.register_module()
class GroupConditionalDetrTransformerDecoderLayer(ConditionalDetrTransformerDecoderLayer):
    """Decoder layer of Conditional DETR whose self-attention stays inside each group.

    Cross-attention and FFN treat every query alone and need no groups.

    Args:
        num_queries (int): Queries of one group, N.
        kwargs: As for ``ConditionalDetrTransformerDecoderLayer``.
    """

    def __init__(self, *args, num_queries: int, **kwargs) -> None:
        self.num_queries = num_queries
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.self_attn = GroupConditionalAttention(
            num_queries=self.num_queries, **self.self_attn_cfg)
        self.cross_attn = FusedConditionalAttention(**self.cross_attn_cfg)
        fuse_ffn(self.ffn)


@MODELS.register_module()
class GroupConditionalDetrTransformerDecoder(ConditionalDetrTransformerDecoder):
    """Decoder of Conditional DETR over K groups of queries, for any width.

    Args:
        num_queries (int): Queries of one group, N.
        kwargs: As for ``ConditionalDetrTransformerDecoder``.
    """

    def __init__(self, *args, num_queries: int, **kwargs) -> None:
        self.num_queries = num_queries
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.layers = ModuleList([
            GroupConditionalDetrTransformerDecoderLayer(
                num_queries=self.num_queries, **self.layer_cfg) for _ in range(self.num_layers)
        ])
        for layer in self.layers[1:]:
            layer.cross_attn.qpos_proj = None

    def forward(self,
                query: Tensor,
                key: Tensor,
                query_pos: Tensor,
                key_pos: Tensor,
                key_padding_mask: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Decode the queries of any number of groups.

        Args:
            query (Tensor): Content queries, shape (bs, K * N, dim).
            key (Tensor): Memory, shape (bs, num_keys, dim).
            query_pos (Tensor): Positional queries, shape (bs, K * N, dim), or (1, K * N, dim)
                where all images have the same ones, which are then projected once.
            key_pos (Tensor): Positional encoding of the memory, shape (bs, num_keys, dim).
            key_padding_mask (Tensor, optional): True at padding, shape (bs, num_keys).

        Returns:
            tuple[Tensor, Tensor]: Normalized hidden states of every layer (the last one alone
            without ``return_intermediate``), shape (num_layers, bs, K * N, dim), and the reference
            points, normalized (x, y), shape (bs, K * N, 2).
        """
        if key_padding_mask is not None:  # not a view: torch.compile would guard its base's shape
            key_padding_mask = key_padding_mask.clone()
        reference = self.predict_reference_points(query_pos)
        sine_embed = coordinate_to_encoding(reference, num_feats=self.embed_dims // 2)
        hidden_states = []
        for index, layer in enumerate(self.layers):
            if index:
                ref_sine_embed = sine_embed * self.query_scale(query)
            else:
                ref_sine_embed = sine_embed.expand_as(query)
            query = layer(
                query,
                key=key,
                query_pos=query_pos,
                key_pos=key_pos,
                key_padding_mask=key_padding_mask,
                ref_sine_embed=ref_sine_embed,
                is_first=index == 0)
            hidden_states.append(self.post_norm(query))
        if not self.return_intermediate:
            hidden_states = hidden_states[-1:]
        return torch.stack(hidden_states), reference.expand(len(query), -1, -1)

    def predict_reference_points(self, query_pos: Tensor) -> Tensor:
        """Predict reference points in float32, also under autocast: 8 bits cannot place a box.

        Args:
            query_pos (Tensor): Positional queries, shape (bs, K * N, dim).

        Returns:
            Tensor: Normalized (x, y), shape (bs, K * N, 2).
        """
        with torch.autocast(query_pos.device.type, enabled=False):
            return self.ref_point_head(query_pos.float()).sigmoid()
