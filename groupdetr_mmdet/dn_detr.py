"""DN-DETR with groups of queries. mmdet has no DN-DETR; with one group this is DN-DETR."""
from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import DABDETRHead
from mmdet.models.layers import CdnQueryGenerator, inverse_sigmoid
from mmdet.registry import MODELS
from mmdet.structures import OptSampleList, SampleList
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList, OptConfigType, OptInstanceList
from torch import Tensor, nn

from .assigner import MatchedPairs
from .criterion import GroupCriterion, name_layers
from .dab import GroupDABDETR
from .dino import denoising_pairs, split_denoising
from .groups import fold_groups, unfold_groups


class DnQueryGenerator(CdnQueryGenerator):
    """Denoising queries of DN-DETR: DINO's without negatives, with the noise of the official code.

    A content query is the embedding of a label and one more channel, which is 1 in denoising
    queries and 0 in matching queries. The label of matching queries is ``num_classes``.

    Args:
        label_noise_scale (float): Share of the labels replaced by a random class. Defaults to 0.2.
        box_noise_scale (float): Noise of a box. The center moves by up to half of the size times
            this number, the size changes by up to the size times this number. Defaults to 0.4.
        kwargs: As for ``CdnQueryGenerator``. The official DN-DETR makes five denoising groups,
            ``group_cfg=dict(dynamic=False, num_groups=5)``. Dynamic groups, as in the Group DETR
            paper, are as many as ``num_dn_queries`` allows.
    """

    def __init__(self, *, label_noise_scale: float = .2, box_noise_scale: float = .4,
                 **kwargs) -> None:
        super().__init__(
            label_noise_scale=label_noise_scale, box_noise_scale=box_noise_scale, **kwargs)
        self.label_embedding = nn.Embedding(self.num_classes + 1, self.embed_dims - 1)

    def __call__(self, batch_data_samples: SampleList) -> Tuple[Tensor, Tensor, Tensor, dict]:
        """Make the denoising queries of one group of queries.

        Returns:
            tuple[Tensor, Tensor, Tensor, dict]: As ``CdnQueryGenerator``: content queries, shape
            (bs, num_dn, dim), anchors before the sigmoid, cxcywh, shape (bs, num_dn, 4), the
            attention mask of a group, True where attention is blocked, shape
            (num_dn + N, num_dn + N), and ``num_denoising_queries`` and ``num_denoising_groups``.
        """
        query, anchors, mask, meta = super().__call__(batch_data_samples)
        most = max(len(sample.gt_instances) for sample in batch_data_samples)
        rows = torch.arange(len(mask), device=mask.device)
        # Rows are [positives | negatives] of each denoising group, then the matching queries.
        kept = rows[(rows >= query.size(1)) | (rows % max(1, 2 * most) < most)]
        positives = kept[:len(kept) - self.num_matching_queries]
        return query[:, positives], anchors[:, positives], mask[kept][:, kept], dict(
            meta, num_denoising_queries=len(positives))

    def matching_query(self) -> Tensor:
        """Return the content of every matching query, shape (dim, )."""
        return F.pad(self.label_embedding.weight[self.num_classes], (0, 1))

    def generate_dn_label_query(self, gt_labels: Tensor, num_groups: int) -> Tensor:
        """Embed the labels of all images, some of them random, ``(G, ) -> (2 * groups * G, dim)``.

        As in DINO, half of the queries are negatives, which are dropped later.
        """
        labels = gt_labels.repeat(2 * num_groups)
        is_noisy = torch.rand(labels.shape, device=labels.device) < self.label_noise_scale
        labels = torch.where(is_noisy, torch.randint_like(labels, self.num_classes), labels)
        return F.pad(self.label_embedding(labels), (0, 1), value=1.)

    def generate_dn_bbox_query(self, gt_bboxes: Tensor, num_groups: int) -> Tensor:
        """Move and scale the boxes of all images, ``(G, 4) -> (2 * groups * G, 4)``.

        Boxes are normalized xyxy, the result has anchors, cxcywh before the sigmoid.
        """
        boxes = bbox_xyxy_to_cxcywh(gt_bboxes).repeat(2 * num_groups, 1)
        sizes = torch.cat([boxes[:, 2:] / 2, boxes[:, 2:]], 1)
        noise = self.box_noise_scale * (2 * torch.rand_like(boxes) - 1)
        return inverse_sigmoid((boxes + noise * sizes).clamp(0, 1), eps=1e-3)


@MODELS.register_module()
class GroupDNDETRHead(DABDETRHead, GroupCriterion):
    """``DABDETRHead`` that supervises K groups, each with denoising queries."""

    def loss(self, hidden_states: Tensor, references: Tensor, batch_data_samples: SampleList,
             dn_meta: Optional[Dict[str, int]] = None) -> Dict[str, Tensor]:
        """Compute the losses; arguments as for the stock head and :meth:`loss_by_feat`."""
        return self.loss_by_feat(
            *self(hidden_states, references), [x.gt_instances for x in batch_data_samples],
            [x.metainfo for x in batch_data_samples], dn_meta=dn_meta)

    def loss_by_feat(self, all_layers_cls_scores: Tensor, all_layers_bbox_preds: Tensor,
                     batch_gt_instances: InstanceList, batch_img_metas: List[dict],
                     batch_gt_instances_ignore: OptInstanceList = None,
                     dn_meta: Optional[Dict[str, int]] = None) -> Dict[str, Tensor]:
        """Compute the losses of matching and denoising queries.

        Arguments as for :meth:`GroupCriterion.loss_by_feat`; ``dn_meta`` counts the denoising
        queries of all groups together. The result also has ``dn_loss_cls``, ``d0.dn_loss_cls``,
        ...
        """
        outputs, of_images = (all_layers_cls_scores, all_layers_bbox_preds), (
            batch_gt_instances, batch_img_metas)
        if dn_meta is None:
            return super().loss_by_feat(*outputs, *of_images, batch_gt_instances_ignore)
        matching, denoising = zip(*(
            split_denoising(x, dn_meta['num_denoising_queries'], self.assigner.num_queries)
            for x in outputs))
        losses = super().loss_by_feat(*matching, *of_images, batch_gt_instances_ignore)
        dn_losses = self.loss_dn(*denoising, *of_images, dn_meta['num_denoising_groups'])
        return dict(losses, **name_layers(dn_losses))

    def loss_dn(self, cls_scores: Tensor, bbox_preds: Tensor, batch_gt_instances: InstanceList,
                batch_img_metas: List[dict], num_groups: int) -> Dict[str, Tensor]:
        """Compute the losses of the denoising queries, without padding rows.

        ``num_groups`` is the number of denoising groups in all groups of queries. Returns
        ``dn_loss_cls``, ``dn_loss_bbox`` and ``dn_loss_iou``, each of shape (num_layers, ).
        """
        pairs = denoising_pairs(cls_scores, batch_gt_instances, num_groups)
        cls_scores, bbox_preds = (x.flatten(0, 2)[pairs.rows][:, None]  # (num_layers, 1, rows, C)
                                  for x in (cls_scores, bbox_preds))
        every_row = torch.arange(pairs.rows.numel(), device=pairs.rows.device)
        pairs = MatchedPairs(every_row.view_as(pairs.rows), pairs.gts)
        losses = self.pair_losses(cls_scores, bbox_preds, batch_gt_instances, batch_img_metas,
                                  pairs, num_groups)
        return {f'dn_{name}': values for name, values in losses.items()}


@MODELS.register_module()
class GroupDNDETR(GroupDABDETR):
    """DN-DETR (arXiv:2203.01305) trained with groups of queries.

    DAB-DETR with denoising queries, whose noise differs between groups. The rows of a group are
    ``[denoising | matching]``, as in :class:`GroupDINO`.

    Args:
        dn_cfg (dict, optional): Arguments of :class:`DnQueryGenerator`. None: DAB-DETR.
        kwargs: As for :class:`GroupDABDETR`.
    """
    head_class = GroupDNDETRHead

    def __init__(self, *, dn_cfg: OptConfigType = None, **kwargs) -> None:
        self.dn_cfg = dn_cfg
        super().__init__(**kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.dn_query_generator = None
        if self.dn_cfg is not None:
            self.dn_query_generator = DnQueryGenerator(
                num_classes=self.bbox_head.num_classes, embed_dims=self.embed_dims,
                num_matching_queries=self.group_size, **self.dn_cfg)

    def pre_transformer(self, img_feats: Tuple[Tensor],
                        batch_data_samples: OptSampleList = None) -> Tuple[Dict, Dict]:
        """Also pass the ground truth to the decoder; arguments as for the stock detector."""
        encoder_inputs, decoder_inputs = super().pre_transformer(img_feats, batch_data_samples)
        return encoder_inputs, dict(decoder_inputs, batch_data_samples=batch_data_samples)

    def forward_decoder(self, query: Tensor, query_pos: Tensor, memory: Tensor,
                        memory_mask: Tensor, memory_pos: Tensor,
                        batch_data_samples: OptSampleList) -> Dict:
        """Decode the queries, in training with denoising queries.

        Arguments as for ``DABDETR``, and the ground truth. The result also has ``dn_meta`` if
        there are denoising queries.
        """
        mask, head_inputs = None, {}
        if self.dn_query_generator is not None:
            query = query + self.dn_query_generator.matching_query()
            if self.training:
                query, query_pos, mask, head_inputs['dn_meta'] = self.add_denoising(
                    query, query_pos, batch_data_samples)
        hidden_states, references = self.decoder(
            query=query, key=memory, query_pos=query_pos, key_pos=memory_pos,
            key_padding_mask=memory_mask, self_attn_masks=mask,
            reg_branches=self.bbox_head.fc_reg)
        return dict(head_inputs, hidden_states=hidden_states, references=references)

    def add_denoising(self, query: Tensor, query_pos: Tensor,
                      samples: SampleList) -> Tuple[Tensor, Tensor, Tensor, Dict[str, int]]:
        """Put denoising queries in front of the queries of each group.

        Returns queries, anchors, the attention mask of one group, and the counts of the denoising
        queries and groups.
        """
        groups = [self.dn_query_generator(samples) for _ in self.decoded_groups]
        contents, anchors, masks, metas = zip(*groups)
        rows = []
        for dn, matching in ((contents, query), (anchors, query_pos)):
            dn = torch.stack(dn, 1).flatten(0, 1)  # (bs * K, num_dn, dim)
            joined = torch.cat([dn, fold_groups(matching, self.group_size)], 1)
            rows.append(unfold_groups(joined, len(samples)))
        return *rows, masks[0], {name: len(groups) * n for name, n in metas[0].items()}
