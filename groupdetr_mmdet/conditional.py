"""Group Conditional DETR: encoder, decoder, head and detector."""
from typing import Dict, Optional, Tuple

import torch
from mmdet.models.dense_heads import ConditionalDETRHead
from mmdet.models.detectors import ConditionalDETR
from mmdet.models.layers import (ConditionalDetrTransformerDecoder,
                                 ConditionalDetrTransformerDecoderLayer, inverse_sigmoid)
from mmdet.models.layers.transformer.utils import coordinate_to_encoding
from mmdet.registry import MODELS
from mmengine.model import ModuleList, constant_init
from torch import Tensor

from .attention import GroupConditionalAttention
from .criterion import GroupCriterion
from .group_queries import GroupQueries
from .groups import decoding
from .ops.attention import FusedConditionalAttention


@MODELS.register_module()
class GroupConditionalDetrTransformerDecoderLayer(ConditionalDetrTransformerDecoderLayer):
    """Decoder layer of Conditional DETR whose self-attention stays inside each group.

    Cross-attention and FFN treat each query separately and need no groups. The detector sets the
    number of queries of a group; until then all queries are one group.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        self.self_attn = GroupConditionalAttention(num_queries=None, **self.self_attn_cfg)
        self.cross_attn = FusedConditionalAttention(**self.cross_attn_cfg)


@MODELS.register_module()
class GroupConditionalDetrTransformerDecoder(ConditionalDetrTransformerDecoder):
    """Decoder of Conditional DETR over K groups of queries, for any width."""

    def _init_layers(self) -> None:
        super()._init_layers()
        self.layers = ModuleList([GroupConditionalDetrTransformerDecoderLayer(**self.layer_cfg)
                                  for _ in range(self.num_layers)])
        for layer in self.layers[1:]:
            layer.cross_attn.qpos_proj = None

    def forward(self, query: Tensor, key: Tensor, query_pos: Tensor, key_pos: Tensor,
                key_padding_mask: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Decode the queries of any number of groups.

        Args:
            query (Tensor): Content queries, shape (bs, K * N, dim).
            key (Tensor): Memory, shape (bs, num_keys, dim).
            query_pos (Tensor): Positional queries, shape (bs, K * N, dim), or (1, K * N, dim) if
                all images share them, which projects them once.
            key_pos (Tensor): Positional encoding of the memory, shape (bs, num_keys, dim).
            key_padding_mask (Tensor, optional): True at padding, shape (bs, num_keys).

        Returns:
            tuple[Tensor, Tensor]: Normalized hidden states of every layer (without
            ``return_intermediate`` of the last layer), shape (num_layers, bs, K * N, dim), and
            reference points, normalized (x, y), shape (bs, K * N, 2).
        """
        key_pos = key_pos.clone()  # torch.compile guards the shape of a view's base
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.clone()
        with torch.autocast(query.device.type, enabled=False):  # boxes need float32
            reference = self.ref_point_head(query_pos.float()).sigmoid()
        sine_embed = coordinate_to_encoding(reference, num_feats=self.embed_dims // 2)
        hidden_states = []
        for index, layer in enumerate(self.layers):
            if index:
                ref_sine_embed = sine_embed * self.query_scale(query)
            else:
                ref_sine_embed = sine_embed.expand_as(query)
            query = layer(
                query, key=key, query_pos=query_pos, key_pos=key_pos, is_first=index == 0,
                key_padding_mask=key_padding_mask, ref_sine_embed=ref_sine_embed)
            hidden_states.append(self.post_norm(query))
        if not self.return_intermediate:
            hidden_states = hidden_states[-1:]
        return torch.stack(hidden_states), reference.expand(query.size(0), -1, -1)


@MODELS.register_module()
class GroupConditionalDETRHead(ConditionalDETRHead, GroupCriterion):
    """``ConditionalDETRHead`` that matches and supervises K groups of queries."""

    def init_weights(self) -> None:
        """Initialize as the official code: boxes start at their reference points."""
        super().init_weights()
        constant_init(self.fc_reg, 0, bias=0)

    def forward(self, hidden_states: Tensor, references: Tensor) -> Tuple[Tensor, Tensor]:
        """Predict logits and boxes from hidden states and reference points.

        Args:
            hidden_states (Tensor): Shape (num_layers, bs, num_rows, dim).
            references (Tensor): Normalized (x, y), shape (bs, num_rows, 2).

        Returns:
            tuple[Tensor, Tensor]: Logits, shape (num_layers, bs, num_rows, C), and boxes,
            normalized cxcywh, shape (num_layers, bs, num_rows, 4), float32 also under autocast.
        """
        offsets = self.fc_reg(self.activate(self.reg_ffn(hidden_states)))
        centers = offsets[..., :2] + inverse_sigmoid(references)
        return self.fc_cls(hidden_states), torch.cat([centers, offsets[..., 2:]], -1).sigmoid()


@MODELS.register_module()
class GroupConditionalDETR(GroupQueries, ConditionalDETR):
    """Conditional DETR trained with groups of queries.

    `Group DETR: Fast DETR Training with Group-Wise One-to-Many Assignment
    <https://arxiv.org/abs/2207.13085>`_. A checkpoint differs from a checkpoint of
    ``ConditionalDETR`` only in the rows of ``query_embedding.weight``, K * N instead of N.
    """
    head_class = ConditionalDETRHead

    def _init_layers(self) -> None:
        decoder = self.decoder
        super()._init_layers()
        self.decoder = GroupConditionalDetrTransformerDecoder(**decoder)

    def pre_decoder(self, memory: Tensor) -> Tuple[Dict, Dict]:
        """Prepare K * N queries in training, N at inference, as the stock detector.

        Positional queries have shape (1, rows, dim), because all images share them.
        """
        with decoding(self.decoded_groups):
            query_pos = self.query_embedding.weight[None]
        query = memory.new_zeros(memory.size(0), *query_pos.shape[1:])
        return dict(query=query, query_pos=query_pos, memory=memory), {}
