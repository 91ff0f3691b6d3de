"""DAB-DETR and DAB-Deformable-DETR with groups of queries; a query is an anchor box.

mmdet has no DAB-Deformable-DETR: :class:`DABDeformableDETR` is the detector without groups.
"""
from typing import Dict, Tuple

from mmdet.models.dense_heads import DABDETRHead, DeformableDETRHead
from mmdet.models.detectors import DABDETR, DeformableDETR
from mmdet.models.layers import DinoTransformerDecoder
from mmdet.registry import MODELS
from torch import Tensor, nn

from .criterion import GroupCriterion
from .deformable import GroupDeformableDETRHead
from .dino import fit_ref_point_head
from .errors import ConfigError
from .group_queries import GroupQueries
from .groups import decoding


@MODELS.register_module()
class GroupDABDETRHead(DABDETRHead, GroupCriterion):
    """``DABDETRHead`` that matches and supervises K groups of queries."""


@MODELS.register_module()
class GroupDABDETR(GroupQueries, DABDETR):
    """DAB-DETR trained with groups of queries.

    A checkpoint differs from a checkpoint of ``DABDETR`` only in the rows of
    ``query_embedding.weight``, K * N anchor boxes instead of N. With ``num_patterns`` P above 0
    each anchor box makes P queries, and a group has P * N rows.
    """
    head_class = DABDETRHead

    @property
    def group_size(self) -> int:
        """Rows of one group, N anchors times the number of patterns."""
        return self.num_queries * max(1, self.num_patterns)

    def pre_decoder(self, memory: Tensor) -> Tuple[Dict, Dict]:
        """Prepare the queries of the chosen groups.

        The rows of a group are laid out pattern by pattern, as in the stock detector.

        Returns:
            tuple[dict, dict]: ``query``, shape (bs, rows, dim), ``query_pos``, anchors before the
            sigmoid, shape (bs, rows, 4), and ``memory``; no inputs of the head.
        """
        with decoding(self.decoded_groups):
            anchors = self.query_embedding.weight.unflatten(0, (-1, self.num_queries))  # (K, N, 4)
        no_pattern = anchors.new_zeros(1, self.embed_dims)
        patterns = self.patterns.weight if self.num_patterns else no_pattern  # (P, dim)
        query = patterns[:, None].expand(len(anchors), -1, self.num_queries, -1).flatten(0, 2)
        query_pos = anchors[:, None].expand(-1, len(patterns), -1, -1).flatten(0, 2)
        query, query_pos = (x.expand(memory.size(0), -1, -1) for x in (query, query_pos))
        return dict(query=query, query_pos=query_pos, memory=memory), {}


@MODELS.register_module()
class DABDeformableDETR(DeformableDETR):
    """Deformable DETR whose queries are anchor boxes, refined by every layer (arXiv:2201.12329).

    The decoder is DINO's, without two stages and denoising queries: a layer's positional query
    encodes the box of the previous layer. The authors' decoder differs in two details: it scales
    positional queries by the content, and propagates no gradient from the loss of a layer to the
    box of the previous layer (DINO's look forward twice does).

    Row i of ``query_embedding`` has the content of query i, ``embed_dims`` numbers, and its
    anchor, cxcywh before the sigmoid. Arguments as for ``DeformableDETR``.

    Raises:
        ConfigError: If ``with_box_refine`` is False or ``as_two_stage`` is True.
    """

    def __init__(self, *args, with_box_refine: bool = True, as_two_stage: bool = False,
                 **kwargs) -> None:
        if not with_box_refine or as_two_stage:
            raise ConfigError(f'model.with_box_refine={with_box_refine} and as_two_stage='
                              f'{as_two_stage} do not fit DAB-Deformable-DETR: leave both out, or '
                              "set model.type to 'GroupDeformableDETR' with its bbox_head.")
        super().__init__(*args, with_box_refine=True, **kwargs)

    def _init_layers(self) -> None:
        decoder = self.decoder
        super()._init_layers()
        self.decoder = DinoTransformerDecoder(**decoder)
        fit_ref_point_head(self.decoder)
        self.query_embedding = nn.Embedding(self.num_queries, self.embed_dims + 4)
        self.reference_points_fc = nn.Identity()  # anchors are the reference points

    def pre_decoder(self, memory: Tensor, memory_mask: Tensor,
                    spatial_shapes: Tensor) -> Tuple[Dict, Dict]:
        """Prepare queries, (bs, N, dim), and reference points, normalized cxcywh, (bs, N, 4)."""
        rows = self.query_embedding.weight.expand(memory.size(0), -1, -1)
        query, anchors = rows.split([self.embed_dims, 4], -1)
        head_inputs = dict(enc_outputs_class=None, enc_outputs_coord=None) if self.training else {}
        return dict(query=query, reference_points=anchors.sigmoid(), memory=memory), head_inputs

    def forward_decoder(self, memory: Tensor, memory_mask: Tensor, **kwargs) -> Dict:
        """Decode; ``kwargs`` as for ``DinoTransformerDecoder``, the mask is True at padding."""
        hidden_states, references = self.decoder(
            value=memory, key_padding_mask=memory_mask, self_attn_mask=None,
            reg_branches=self.bbox_head.reg_branches, **kwargs)
        return dict(hidden_states=hidden_states, references=list(references))


@MODELS.register_module()
class GroupDABDeformableDETRHead(GroupDeformableDETRHead):
    """``DeformableDETRHead`` that matches and supervises K groups of queries."""


@MODELS.register_module()
class GroupDABDeformableDETR(GroupQueries, DABDeformableDETR):
    """DAB-Deformable-DETR trained with groups of queries.

    A checkpoint differs from a checkpoint of :class:`DABDeformableDETR` only in the rows of
    ``query_embedding.weight``, K * N instead of N.
    """
    head_class = DeformableDETRHead
