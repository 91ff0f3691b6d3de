"""DAB-DETR with groups of queries."""
from mmdet.models.dense_heads import DABDETRHead
from mmdet.models.detectors import DABDETR
from mmdet.registry import MODELS

from .attention import replace_attention
from .criterion import GroupCriterion
from .group_queries import GroupQueries
from .ops.attention import FusedConditionalAttention, fuse_encoder_attention


@MODELS.register_module()
class GroupDABDETRHead(GroupCriterion, DABDETRHead):
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
        if self.train_cfg is not None:
            self.bbox_head.assigner.num_queries = self.group_size
