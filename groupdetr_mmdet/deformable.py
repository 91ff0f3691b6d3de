"""Deformable DETR with groups of queries: plain, with box refinement, in two stages."""
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.detectors import DeformableDETR
from mmdet.registry import MODELS
from torch import Tensor, nn

from .criterion import GroupCriterion
from .errors import ConfigError
from .group_queries import GroupQueries
from .groups import decoding


@MODELS.register_module()
class GroupDeformableDETRHead(DeformableDETRHead, GroupCriterion):
    """``DeformableDETRHead`` that matches and supervises K groups of queries."""


@MODELS.register_module()
class GroupDeformableDETR(GroupQueries, DeformableDETR):
    """Deformable DETR trained with groups of queries.

    In two stages every group selects its N proposals with its own encoder head, because slices of
    the best K * N proposals would leave the best proposals to group 0. At inference only the head
    of the kept group runs. Without box refinement mmdet ties the encoder's prediction layers to
    the decoder's; all groups share them, and have only ``memory_trans_fc`` and
    ``memory_trans_norm`` of their own.
    """
    xavier_modules = ('memory_trans_fc', )  # modules of `group_modules` with Xavier initialization

    def __init__(self, *args, as_two_stage: bool = False, **kwargs) -> None:
        if as_two_stage:  # more noise made no difference, see docs/choose-k.md
            kwargs.setdefault('new_group_noise', 0.02)
        super().__init__(*args, as_two_stage=as_two_stage, **kwargs)

    @property
    def head_class(self) -> type:
        """Required class of the head, in two stages for K sets of encoder predictions."""
        return GroupDeformableDETRHead if self.as_two_stage else DeformableDETRHead

    @property
    def group_modules(self) -> List[str]:
        """The query embedding, or in two stages the encoder head."""
        if not self.as_two_stage:
            return super().group_modules
        last = self.decoder.num_layers
        branches = [f'bbox_head.cls_branches.{last}', f'bbox_head.reg_branches.{last}']
        return ['memory_trans_fc', 'memory_trans_norm'] + branches * self.with_box_refine

    def pre_decoder(self, *args, **kwargs) -> Tuple[Dict, Dict]:
        """Prepare the queries of the chosen groups; see :class:`GroupQueries`.

        In two stages the stock method runs for each group, and the head gets the encoder's
        predictions in shape (K, bs, num_rows, dim).
        """
        if not self.as_two_stage:
            return super().pre_decoder(*args, **kwargs)
        prepare = super(GroupQueries, self).pre_decoder
        inputs = []
        for group in self.decoded_groups:
            with decoding(range(group, group + 1)):
                inputs.append(prepare(*args, **kwargs))
        return tuple(merge_groups(x) for x in zip(*inputs))

    def init_weights(self) -> None:
        """Initialize each group separately, because Xavier depends on the number of rows."""
        super().init_weights()
        for name in self.xavier_modules if self.as_two_stage else ():
            for block in self.get_submodule(name).weight.detach().chunk(self.num_query_groups):
                nn.init.xavier_uniform_(block)

    def gen_encoder_output_proposals(self, memory: Tensor, memory_mask: Optional[Tensor],
                                     spatial_shapes: Tensor) -> Tuple[Tensor, Tensor]:
        """Make a proposal of every feature point; arguments and results as for the stock detector.

        In training the shapes are copied to the CPU once, not number by number in each group.

        Raises:
            ConfigError: If the images have fewer feature points than a group has queries.
        """
        if memory.size(1) < self.num_queries:
            raise ConfigError(
                f'model.num_queries={self.num_queries} proposals cannot be selected from '
                f'{memory.size(1)} feature points: use larger images or lower model.num_queries.')
        if self.training:
            spatial_shapes = spatial_shapes.tolist()
        return super().gen_encoder_output_proposals(memory, memory_mask, spatial_shapes)

    def get_proposal_pos_embed(self, proposals: Tensor) -> Tensor:
        """Embed proposals, ``(bs, N, 4) -> (bs, N, 2 * dim)``, for any width.

        ``proposals`` are cxcywh before the sigmoid. The stock method fits 256 channels alone.
        """
        return super().get_proposal_pos_embed(proposals, num_pos_feats=self.embed_dims // 2)


def merge_groups(inputs: Sequence[dict]) -> dict:
    """Merge the groups' inputs of decoder or head.

    Queries and reference points are concatenated, the encoder's predictions stacked. The rest
    (memory, attention mask of a group, ...) is the same for all groups.
    """
    merged = dict(inputs[0])
    for name in merged.keys() & {'query', 'query_pos', 'reference_points'}:
        merged[name] = torch.cat([x[name] for x in inputs], 1)  # (bs, K * N, dim)
    for name in merged.keys() & {'enc_outputs_class', 'enc_outputs_coord'}:
        if merged[name] is not None:
            merged[name] = torch.stack([x[name] for x in inputs])  # (K, bs, num_rows, dim)
    return merged
