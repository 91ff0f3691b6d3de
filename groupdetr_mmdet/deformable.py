"""Deformable DETR with groups of queries: plain, with box refinement, in two stages."""
from typing import List, Optional, Tuple

from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.dense_heads.detr_head import DETRHead
from mmdet.models.detectors import DeformableDETR
from mmdet.registry import MODELS
from mmdet.utils import InstanceList
from torch import Tensor, nn

from .criterion import GroupCriterion
from .group_queries import GroupQueries


class TwoStageGroupCriterion(GroupCriterion, DETRHead):
    """Supervise the encoder's proposals beside the queries: a base for the heads of mmdet.

    It stands in the place of ``DETRHead``, so that the stock heads between call it.
    """

    def loss_by_feat_single(self, cls_scores: Tensor, bbox_preds: Tensor,
                            batch_gt_instances: InstanceList,
                            batch_img_metas: List[dict]) -> Tuple[Tensor, Tensor, Tensor]:
        """Supervise what the encoder predicts, averaged over its sets.

        What one encoder head predicts, at every feature point or at its best ones, is one set,
        matched one-to-one with the ground truth: K sets where every group has a head of its own,
        and a single one where a stock detector has one head, however many rows it gives.

        Args:
            cls_scores (Tensor): Logits, shape (bs, num_rows, C), or of every group's head, shape
                (K, bs, num_rows, C).
            bbox_preds (Tensor): Boxes, normalized cxcywh, shape as the logits with 4 for C.
            batch_gt_instances (list[InstanceData]): Each image's ``labels`` and ``bboxes``, xyxy
                in pixels.
            batch_img_metas (list[dict]): Each image's information, with ``img_shape``.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Scalars, the classification, L1 and IoU loss.
        """
        if cls_scores.dim() == 3:
            cls_scores, bbox_preds = cls_scores[None], bbox_preds[None]
        losses = self.set_losses(cls_scores, bbox_preds, batch_gt_instances, batch_img_metas,
                                 self.assigner.one_set())
        return tuple(losses[name].mean() for name in ('loss_cls', 'loss_bbox', 'loss_iou'))


@MODELS.register_module()
class GroupDeformableDETRHead(DeformableDETRHead, TwoStageGroupCriterion):
    """``DeformableDETRHead`` that matches and supervises K groups of queries."""


@MODELS.register_module()
class GroupDeformableDETR(GroupQueries, DeformableDETR):
    """Deformable DETR trained with groups of queries.

    In two stages every group selects its own N proposals with encoder heads of its own; slices of
    the best K * N proposals would leave the best ones to group 0. Only the heads of the kept group
    run at inference. Without box refinement mmdet ties the encoder's prediction layers to the
    decoder's, which all groups share, and a group's own are ``memory_trans_fc`` and
    ``memory_trans_norm``.
    """

    @property
    def group_modules(self) -> List[str]:
        if not self.as_two_stage:
            return super().group_modules
        last = self.decoder.num_layers
        branches = [f'bbox_head.cls_branches.{last}', f'bbox_head.reg_branches.{last}']
        return ['memory_trans_fc', 'memory_trans_norm'] + branches * self.with_box_refine

    def init_weights(self) -> None:
        """Initialize every group as the stock detector is initialized."""
        super().init_weights()
        if self.as_two_stage:
            self.init_groups('memory_trans_fc')

    def init_groups(self, name: str) -> None:
        """Initialize the weight of a layer block by block: Xavier depends on the rows."""
        for block in self.get_submodule(name).weight.detach().chunk(self.num_query_groups):
            nn.init.xavier_uniform_(block)

    def gen_encoder_output_proposals(self, memory: Tensor, memory_mask: Optional[Tensor],
                                     spatial_shapes: Tensor) -> Tuple[Tensor, Tensor]:
        """Make a proposal of every feature point; arguments and results as for the stock detector.

        In training the shapes cross to the host at once, and not number by number in each group.
        """
        if self.training:
            spatial_shapes = spatial_shapes.tolist()
        return super().gen_encoder_output_proposals(memory, memory_mask, spatial_shapes)

    def get_proposal_pos_embed(self, proposals: Tensor) -> Tensor:
        """Embed proposals, at any width; the stock detector's fits 256 channels.

        Args:
            proposals (Tensor): cxcywh before the sigmoid, shape (bs, N, 4).

        Returns:
            Tensor: Shape (bs, N, 2 * dim).
        """
        return super().get_proposal_pos_embed(proposals, num_pos_feats=self.embed_dims // 2)
