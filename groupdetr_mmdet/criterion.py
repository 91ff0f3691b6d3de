"""The set loss of all decoder layers in one pass."""
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmdet.models.dense_heads import DETRHead
from mmdet.models.losses import QualityFocalLoss
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps, bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList, OptInstanceList, reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .assigner import MatchedPairs
from .losses import loss_terms, sum_layers


class MatchedBoxes(NamedTuple):
    """Boxes of matched pairs, layer after layer, each field of shape (num_layers * pairs, 4)."""
    preds: Tensor  # normalized cxcywh
    gts: Tensor  # xyxy in pixels
    scales: Tensor  # width, height, width, height of the image in pixels

    @torch.no_grad()
    def ious(self) -> Tensor:
        """Compute the IoU of each pair, shape (num_layers * pairs, )."""
        return bbox_overlaps(
            bbox_cxcywh_to_xyxy(self.preds), self.gts / self.scales, is_aligned=True)


class GroupCriterion(DETRHead):
    """Losses of all layers and groups in one pass, for the heads of mmdet's DETR family.

    Name it last, ``class GroupHead(StockHead, GroupCriterion)``: the methods of ``StockHead`` then
    call it in the place of ``DETRHead``.

    The losses equal the stock head's except for the normalizer, which follows the official code:
    each loss, classification included, is divided by the number of ground-truth boxes in the
    batch times K, averaged over ranks, at least 1. (The stock head counts matched queries, which
    are fewer where an image has more boxes than queries.)

    The head must have ``assigner`` (a ``GroupHungarianAssigner``), ``num_classes``, ``loss_cls``,
    ``loss_bbox`` and ``loss_iou``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        branches = self.reg_branches if hasattr(self, 'reg_branches') else [self.fc_reg]
        for branch in dict.fromkeys(branches):
            branch.register_forward_hook(to_float32)

    def loss_by_feat(self, all_layers_cls_scores: Tensor, all_layers_bbox_preds: Tensor,
                     batch_gt_instances: InstanceList, batch_img_metas: List[dict],
                     batch_gt_instances_ignore: OptInstanceList = None) -> Dict[str, Tensor]:
        """Compute the losses of every decoder layer.

        Args:
            all_layers_cls_scores (Tensor): Logits, shape (num_layers, bs, K * N, C).
            all_layers_bbox_preds (Tensor): Boxes, normalized cxcywh, shape
                (num_layers, bs, K * N, 4).
            batch_gt_instances (list[InstanceData]): Each image's ``labels``, shape (G, ), and
                ``bboxes``, xyxy in pixels, shape (G, 4).
            batch_img_metas (list[dict]): Each image's information, with ``img_shape``.
            batch_gt_instances_ignore: Must be None, as for the stock head.

        Returns:
            dict[str, Tensor]: Scalars ``loss_cls``, ``loss_bbox``, ``loss_iou`` of the last layer
            and ``d0.loss_cls``, ... of the layers before it.

        Raises:
            ConfigError: If predictions do not divide into groups, or a label does not fit.
            FloatingPointError: If a prediction is NaN or infinite.
        """
        assert batch_gt_instances_ignore is None, \
            f'{type(self).__name__} takes no batch_gt_instances_ignore.'
        return name_layers(self.set_losses(all_layers_cls_scores, all_layers_bbox_preds,
                                           batch_gt_instances, batch_img_metas))

    def loss_by_feat_single(self, cls_scores: Tensor, bbox_preds: Tensor,
                            batch_gt_instances: InstanceList,
                            batch_img_metas: List[dict]) -> Tuple[Tensor, Tensor, Tensor]:
        """Compute the mean loss of encoder heads (two stages).

        The predictions of each head are matched one-to-one with the ground truth, as one set.
        Arguments as for :meth:`loss_by_feat`, but of shape (bs, num_rows, C or 4) of one head,
        or (K, bs, num_rows, C or 4) of K heads.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Classification, L1 and IoU loss, scalars.
        """
        if cls_scores.dim() == 3:
            cls_scores, bbox_preds = cls_scores[None], bbox_preds[None]
        losses = self.set_losses(cls_scores, bbox_preds, batch_gt_instances, batch_img_metas,
                                 num_groups=1)
        return tuple(loss.mean() for loss in losses.values())

    def set_losses(self, cls_scores: Tensor, bbox_preds: Tensor, batch_gt_instances: InstanceList,
                   batch_img_metas: List[dict],
                   num_groups: Optional[int] = None) -> Dict[str, Tensor]:
        """Match, and compute ``loss_cls``, ``loss_bbox`` and ``loss_iou``, shape (num_layers, ).

        Arguments as for :meth:`loss_by_feat`; ``num_groups`` is the number of groups of
        predictions other than the decoder's.
        """
        num_groups = num_groups or self.assigner.count_groups(cls_scores.size(2))
        pairs = self.assigner.match_layers(cls_scores, bbox_preds, batch_gt_instances,
                                           batch_img_metas, self.num_classes, num_groups)
        return self.pair_losses(cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, pairs,
                                num_groups)

    def pair_losses(self, cls_scores: Tensor, bbox_preds: Tensor,
                    batch_gt_instances: InstanceList, batch_img_metas: List[dict],
                    pairs: MatchedPairs, num_groups: int) -> Dict[str, Tensor]:
        """Compute the losses of given pairs, with all other queries as background.

        ``num_groups`` is the number of queries paired with each object. Returns as
        :meth:`set_losses`.
        """
        normalizer = self.count_targets(batch_gt_instances, num_groups, bbox_preds)
        boxes = match_boxes(bbox_preds, batch_gt_instances, batch_img_metas, pairs)
        loss_cls = self.classification_loss(cls_scores, batch_gt_instances, pairs, boxes)
        loss_bbox, loss_iou = self.box_losses(bbox_preds, boxes)
        losses = dict(loss_cls=loss_cls, loss_bbox=loss_bbox, loss_iou=loss_iou)
        return {name: loss / normalizer for name, loss in losses.items()}

    @staticmethod
    def count_targets(batch_gt_instances: Sequence[InstanceData], num_groups: int,
                      like: Tensor) -> Tensor:
        """Return the normalizer: ground truth times K, averaged over ranks, at least 1.

        A float32 scalar, ``num_boxes`` in the official code (``SetCriterion.forward``).
        """
        num_boxes = num_groups * sum(len(gts) for gts in batch_gt_instances)
        count = torch.full((), num_boxes, dtype=torch.float32, device=like.device)
        return reduce_mean(count).clamp(min=1)

    def classification_loss(self, cls_scores: Tensor, batch_gt_instances: InstanceList,
                            pairs: MatchedPairs, boxes: MatchedBoxes) -> Tensor:
        """Compute the sum of ``loss_cls`` over the queries of each layer, shape (num_layers, )."""
        labels = torch.cat([gts.labels for gts in batch_gt_instances])[pairs.gts]
        loss_cls, ious = self.loss_cls, None
        if isinstance(loss_cls, QualityFocalLoss):
            ious = boxes.ious().view_as(labels)
        terms = loss_terms(loss_cls)
        if terms is not None:
            return loss_cls.loss_weight * sum_layers(terms, cls_scores, pairs.rows, labels, ious)
        targets = labels.new_full(cls_scores.shape[:-1], self.num_classes).flatten()
        targets[pairs.rows] = labels
        if ious is not None:
            scores = ious.new_zeros(targets.shape)
            scores[pairs.rows] = ious
            targets = targets, scores
        losses = loss_cls(cls_scores.flatten(0, 2).float(), targets, reduction_override='none')
        return losses.view(len(cls_scores), -1).sum(1)

    def box_losses(self, bbox_preds: Tensor, boxes: MatchedBoxes) -> Tuple[Tensor, Tensor]:
        """Compute the sums of ``loss_bbox`` and ``loss_iou`` over each layer's pairs.

        Both have shape (num_layers, ).
        """
        if not len(boxes.preds):  # DDP requires a gradient of every parameter
            nothing = bbox_preds.float().flatten(1).sum(1) * 0
            return nothing, nothing
        preds, gts, scales = boxes
        loss_bbox = self.loss_bbox(
            preds, bbox_xyxy_to_cxcywh(gts / scales), reduction_override='none')
        loss_iou = self.loss_iou(
            bbox_cxcywh_to_xyxy(preds) * scales, gts, reduction_override='none')
        return tuple(x.view(len(bbox_preds), -1).sum(1) for x in (loss_bbox, loss_iou))


def match_boxes(bbox_preds: Tensor, batch_gt_instances: InstanceList, batch_img_metas: List[dict],
                pairs: MatchedPairs) -> MatchedBoxes:
    """Gather the boxes of pairs; arguments as for :meth:`GroupCriterion.pair_losses`."""
    scales = torch.cat([
        gts.bboxes.new_tensor([meta['img_shape'][1], meta['img_shape'][0]] * 2).expand(
            len(gts), 4) for gts, meta in zip(batch_gt_instances, batch_img_metas)])
    gts = torch.cat([gts.bboxes for gts in batch_gt_instances])
    chosen = pairs.gts.flatten()
    return MatchedBoxes(bbox_preds.flatten(0, 2)[pairs.rows.flatten()].float(), gts[chosen],
                        scales[chosen])


def name_layers(losses: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Name losses of shape (num_layers, ) as mmdet: ``d0.loss_cls``, ..., last ``loss_cls``."""
    *before, last = zip(*losses.values())
    named = dict(zip(losses, last))
    for layer, values in enumerate(before):
        named.update(zip((f'd{layer}.{name}' for name in losses), values))
    return named


def to_float32(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """Return boxes in float32, also under autocast: bfloat16 has 8 significant bits."""
    return output.float()
