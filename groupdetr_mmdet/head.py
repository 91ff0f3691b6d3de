"""Head of Group Conditional DETR."""
from typing import Tuple

import torch
from mmdet.models.dense_heads import ConditionalDETRHead
from mmdet.models.layers import inverse_sigmoid
from mmdet.registry import MODELS
from mmengine.model import constant_init
from torch import Tensor

from .criterion import GroupCriterion


@MODELS.register_module()
class GroupConditionalDETRHead(GroupCriterion, ConditionalDETRHead):
    """``ConditionalDETRHead`` that matches and supervises K groups of queries.

    It has the parameters of the stock head. The number of groups is that of its assigner, a
    :class:`GroupHungarianAssigner`, which the detector tells.
    """

    def init_weights(self) -> None:
        """Initialize as the official code: boxes start as their reference points."""
        super().init_weights()
        constant_init(self.fc_reg, 0, bias=0)

    def forward(self, hidden_states: Tensor, references: Tensor) -> Tuple[Tensor, Tensor]:
        """Predict classes and boxes; boxes in float32, also under autocast.

        Args:
            hidden_states (Tensor): Shape (num_layers, bs, num_rows, dim).
            references (Tensor): Reference points, normalized (x, y), shape (bs, num_rows, 2).

        Returns:
            tuple[Tensor, Tensor]: Logits, shape (num_layers, bs, num_rows, num_classes), and
            boxes, normalized cxcywh, shape (num_layers, bs, num_rows, 4).
        """
        offsets = self.fc_reg(self.activate(self.reg_ffn(hidden_states))).float()
        centers = offsets[..., :2] + inverse_sigmoid(references)
        return self.fc_cls(hidden_states), torch.cat([centers, offsets[..., 2:]], -1).sigmoid()
