"""DINO with groups of queries."""
from typing import Dict, List, Optional, Tuple

import numpy as np
from mmdet.models.dense_heads import DINOHead
from mmdet.models.detectors import DINO
from mmdet.models.layers import MLP, DinoTransformerDecoder
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import InstanceList
from torch import Tensor

from .assigner import MatchedPairs
from .criterion import GroupCriterion
from .deformable import GroupDeformableDETR
from .groups import count_groups

SINE_FEATURES = 128  # of each coordinate in mmdet's DINO decoder, of any width


@MODELS.register_module()
class GroupDINOHead(DINOHead, GroupCriterion):
    """``DINOHead`` that matches and supervises K groups, each with denoising queries."""

    def split_outputs(self, all_layers_cls_scores: Tensor, all_layers_bbox_preds: Tensor,
                      dn_meta: Dict[str, int]) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Separate matching and denoising queries; see :func:`split_denoising`.

        ``dn_meta`` counts the denoising queries of all groups together. Returns logits and boxes
        of matching queries, then of denoising queries, shape (num_layers, bs, num_rows, dim).
        """
        (matching_scores, dn_scores), (matching_boxes, dn_boxes) = (
            split_denoising(x, dn_meta['num_denoising_queries'], self.assigner.num_queries)
            for x in (all_layers_cls_scores, all_layers_bbox_preds))
        return matching_scores, matching_boxes, dn_scores, dn_boxes

    def loss_dn(self, all_layers_denoising_cls_scores: Tensor,
                all_layers_denoising_bbox_preds: Tensor, batch_gt_instances: InstanceList,
                batch_img_metas: List[dict],
                dn_meta: Dict[str, int]) -> Tuple[Tensor, Tensor, Tensor]:
        """Compute the losses of the denoising queries of all layers and groups.

        Arguments as for :meth:`GroupCriterion.loss_by_feat`; ``dn_meta`` counts the denoising
        groups of all groups of queries. Returns classification, L1 and IoU loss, each of shape
        (num_layers, ).
        """
        num_groups = dn_meta['num_denoising_groups']
        pairs = denoising_pairs(all_layers_denoising_cls_scores, batch_gt_instances, num_groups)
        losses = self.pair_losses(all_layers_denoising_cls_scores,
                                  all_layers_denoising_bbox_preds, batch_gt_instances,
                                  batch_img_metas, pairs, num_groups)
        return tuple(losses.values())


def split_denoising(outputs: Tensor, num_denoising: int,
                    num_queries: Optional[int]) -> Tuple[Tensor, Tensor]:
    """Separate groups of rows ``[denoising | matching]`` into matching and denoising rows.

    Args:
        outputs (Tensor): Logits or boxes, shape (num_layers, bs, num_rows, dim).
        num_denoising (int): Denoising queries of all groups together.
        num_queries (int, optional): Matching queries of one group. None: there is one group.

    Returns:
        tuple[Tensor, Tensor]: Matching and denoising rows, group after group.
    """
    num_matching = outputs.size(2) - num_denoising
    num_groups = 1 if num_queries is None else count_groups(num_matching, num_queries)
    groups = outputs.unflatten(2, (num_groups, -1))  # (num_layers, bs, K, rows of a group, dim)
    first = num_denoising // num_groups
    return groups[..., first:, :].flatten(2, 3), groups[..., :first, :].flatten(2, 3)


def denoising_pairs(cls_scores: Tensor, batch_gt_instances: InstanceList,
                    num_groups: int) -> MatchedPairs:
    """Pair each positive denoising query with the box that it is made from.

    The rows of ``cls_scores``, shape (num_layers, bs, num_rows, C), are ``num_groups`` denoising
    groups. A denoising group has a positive query for each box, padded to the image with the most
    boxes, and then, in DINO, as many negative queries.
    """
    num_layers, _, num_rows, _ = cls_scores.shape
    num_gts = [len(gts) for gts in batch_gt_instances]
    first_rows, pairs = np.arange(num_groups)[:, None] * (num_rows // num_groups), []
    for count in num_gts:
        gts = np.broadcast_to(np.arange(count), (num_groups, count))
        pairs.append([np.tile(x.ravel(), (num_layers, 1)) for x in (first_rows + gts, gts)])
    return MatchedPairs.of_images(pairs, num_rows, num_gts, cls_scores.device)


def fit_ref_point_head(decoder: DinoTransformerDecoder) -> None:
    """Let a decoder of DINO have any width, in place; mmdet's fits 256 channels alone.

    The decoder of onedl's fork, with twice the inputs, fits every width and stays.
    """
    width = decoder.embed_dims
    if decoder.ref_point_head.layers[0].in_features == 2 * width != 4 * SINE_FEATURES:
        decoder.ref_point_head = MLP(4 * SINE_FEATURES, width, width, 2)


@MODELS.register_module()
class GroupDINO(GroupDeformableDETR, DINO):
    """DINO trained with groups of queries.

    Every group has its own content queries, its own encoder head, which selects its proposals,
    and its own denoising queries. The rows of a group are ``[denoising | matching]``, so the fold
    is still a reshape, and all groups share the attention mask of a group.
    """
    head_class = GroupDINOHead
    xavier_modules = ('memory_trans_fc', 'query_embedding')

    @property
    def group_modules(self) -> List[str]:
        """The encoder head, as in two stages, and the content queries."""
        return super().group_modules + ['query_embedding']

    def _init_layers(self) -> None:
        super()._init_layers()
        fit_ref_point_head(self.decoder)

    def encode(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tuple[Dict, Dict]:
        """Also pass the ground truth to ``pre_decoder``, which makes denoising queries from it."""
        memory, decoder_inputs = super().encode(batch_inputs, batch_data_samples)
        return dict(memory, batch_data_samples=batch_data_samples), decoder_inputs

    def pre_decoder(self, *args, **kwargs) -> Tuple[Dict, Dict]:
        """Prepare the queries as in two stages, and count the denoising queries of all groups."""
        decoder_inputs, head_inputs = super().pre_decoder(*args, **kwargs)
        if self.training:
            of_one = head_inputs['dn_meta']
            head_inputs['dn_meta'] = {x: len(self.decoded_groups) * n for x, n in of_one.items()}
        return decoder_inputs, head_inputs
