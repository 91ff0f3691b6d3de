"""Ablations of the paper's Table 7: what groups are good for."""
from typing import Optional, Sequence

import torch
from mmdet.models.task_modules import AssignResult
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor

from .assigner import GroupHungarianAssigner, MatchedPairs


@TASK_UTILS.register_module()
class OneToManyHungarianAssigner(GroupHungarianAssigner):
    """Match every object with K queries of whatever group: naive one-to-many assignment.

    An object is K objects for the matching, which is otherwise one-to-one. There are as many pairs
    as with :class:`GroupHungarianAssigner`, and so the loss has the same scale.

    Args:
        kwargs: As for ``GroupHungarianAssigner``.
    """

    def assign(self,
               pred_instances: InstanceData,
               gt_instances: InstanceData,
               img_meta: Optional[dict] = None,
               **kwargs) -> AssignResult:
        """Match one image's predictions of one layer; arguments and errors as of the parent.

        Returns:
            AssignResult: As of the parent.
        """
        num_gts, repeats = len(gt_instances), self.count_groups(len(pred_instances))
        result = super(OneToManyHungarianAssigner, self.one_set()).assign(
            pred_instances, InstanceData.cat([gt_instances] * repeats), img_meta, **kwargs)
        matched = result.gt_inds > 0
        result.gt_inds[matched] = (result.gt_inds[matched] - 1) % max(1, num_gts) + 1
        result.num_gts = num_gts
        return result

    def match_layers(self, cls_scores: Tensor, bbox_preds: Tensor,
                     batch_gt_instances: Sequence[InstanceData], batch_img_metas: Sequence[dict],
                     num_classes: int) -> MatchedPairs:
        """Match all layers and images of a batch; arguments and errors as of the parent.

        Returns:
            MatchedPairs: The pairs of every layer.
        """
        repeats = self.count_groups(cls_scores.size(2))
        repeated = [InstanceData.cat([gts] * repeats) for gts in batch_gt_instances]
        rows, copies = super(OneToManyHungarianAssigner, self.one_set()).match_layers(
            cls_scores, bbox_preds, repeated, batch_img_metas, num_classes)
        numbers = torch.arange(sum(map(len, batch_gt_instances)), device=copies.device)
        originals = torch.cat([
            x.repeat(repeats) for x in numbers.split([len(gts) for gts in batch_gt_instances])])
        return MatchedPairs(rows, originals[copies])
