"""DINO with groups of queries."""
from typing import Dict, List, Tuple

from mmdet.models.dense_heads import DINOHead
from mmdet.models.detectors import DINO
from mmdet.models.layers import MLP
from mmdet.registry import MODELS
from torch import Tensor

from .deformable import GroupDeformableDETR, TwoStageGroupCriterion
from .groups import count_groups

SINE_FEATURES = 128  # of each coordinate in mmdet's DINO decoder, at any width


@MODELS.register_module()
class GroupDINOHead(DINOHead, TwoStageGroupCriterion):
    """``DINOHead`` that matches and supervises K groups, each with denoising queries."""

    def split_outputs(self, all_layers_cls_scores: Tensor, all_layers_bbox_preds: Tensor,
                      dn_meta: Dict[str, int]) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take the denoising queries out of each group, whose rows are ``[denoising | matching]``.

        Args:
            all_layers_cls_scores (Tensor): Logits, shape (num_layers, bs, num_rows, C).
            all_layers_bbox_preds (Tensor): Boxes, shape (num_layers, bs, num_rows, 4).
            dn_meta (dict): ``num_denoising_queries`` of all groups together.

        Returns:
            tuple[Tensor, Tensor, Tensor, Tensor]: Logits and boxes of the matching part, then of
            the denoising part, each group after group.
        """
        num_layers, batch_size, num_rows, _ = all_layers_cls_scores.shape
        num_denoising = dn_meta['num_denoising_queries']
        num_groups = 1
        if self.assigner.num_queries is not None:
            num_groups = count_groups(num_rows - num_denoising, self.assigner.num_queries)
        folded = (x.reshape(num_layers, batch_size * num_groups, num_rows // num_groups, -1)
                  for x in (all_layers_cls_scores, all_layers_bbox_preds))
        parts = super().split_outputs(
            *folded, dict(dn_meta, num_denoising_queries=num_denoising // num_groups))
        return tuple(x.reshape(num_layers, batch_size, -1, x.size(-1)) for x in parts)


@MODELS.register_module()
class GroupDINO(GroupDeformableDETR, DINO):
    """DINO trained with groups of queries.

    Every group has content queries, encoder heads with which it selects its own proposals, and
    denoising queries of its own. The rows of a group are ``[denoising | matching]``, so that the
    fold stays one reshape and the attention mask is that of a single group.
    """

    @property
    def group_modules(self) -> List[str]:
        return super().group_modules + ['query_embedding']

    def _init_layers(self) -> None:
        super()._init_layers()
        self.decoder.ref_point_head = MLP(4 * SINE_FEATURES, self.embed_dims, self.embed_dims, 2)

    def init_weights(self) -> None:
        super().init_weights()
        self.init_groups('query_embedding')

    def pre_decoder(self, *args, **kwargs) -> Tuple[Dict, Dict]:
        decoder_inputs, head_inputs = super().pre_decoder(*args, **kwargs)
        if self.training:
            dn_meta = head_inputs['dn_meta']  # of one group
            head_inputs['dn_meta'] = {x: self.num_query_groups * n for x, n in dn_meta.items()}
        return decoder_inputs, head_inputs
