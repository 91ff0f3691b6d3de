"""DAB-DETR with groups of queries."""
from typing import Dict, Tuple

from mmdet.models.dense_heads import DABDETRHead
from mmdet.models.detectors import DABDETR
from mmdet.registry import MODELS
from torch import Tensor

from .attention import replace_attention
from .criterion import GroupCriterion
from .group_queries import GroupQueries
from .ops.attention import FusedConditionalAttention, fuse_encoder_attention


@MODELS.register_module()
class GroupDABDETRHead(DABDETRHead, GroupCriterion):
    """``DABDETRHead`` that matches and supervises K groups of queries."""


@MODELS.register_module()
class GroupDABDETR(GroupQueries, DABDETR):
    """DAB-DETR trained with groups of queries.

    A checkpoint differs from one of ``DABDETR`` in the rows of ``query_embedding.weight``, K * N
    anchor boxes instead of N, and nowhere else. With ``num_patterns`` P above 0 each anchor box
    makes P queries, and a group has P * N rows.
    """

    @property
    def group_size(self) -> int:
        return self.num_queries * max(1, self.num_patterns)

    def _init_layers(self) -> None:
        super()._init_layers()
        for layer in self.encoder.layers:
            fuse_encoder_attention(layer.self_attn)
        for layer in self.decoder.layers:
            replace_attention(layer, 'cross_attn', FusedConditionalAttention)

    def pre_decoder(self, memory: Tensor) -> Tuple[Dict, Dict]:
        """Prepare the queries of the groups that are decoded.

        The stock detector makes ``num_queries`` content queries, whatever its anchors, and lays
        out the rows pattern by pattern.

        Args:
            memory (Tensor): Shape (bs, num_feat_points, dim).

        Returns:
            tuple[dict, dict]: ``query``, shape (bs, rows, dim), ``query_pos``, anchors before the
            sigmoid, shape (bs, rows, 4), and ``memory``; nothing for the head.
        """
        anchors = self.query_embedding.weight.unflatten(0, (-1, self.num_queries))  # (K, N, 4)
        anchors = anchors[self.decoded_groups.start:self.decoded_groups.stop]
        if self.num_patterns:
            patterns = self.patterns.weight[:, None]  # (P, 1, dim)
        else:
            patterns = anchors.new_zeros(1, 1, self.embed_dims)
        query = patterns.expand(len(anchors), -1, self.num_queries, -1).flatten(0, 2)
        query_pos = anchors[:, None].expand(-1, len(patterns), -1, -1).flatten(0, 2)
        query, query_pos = (x.expand(memory.size(0), -1, -1) for x in (query, query_pos))
        return dict(query=query, query_pos=query_pos, memory=memory), {}
