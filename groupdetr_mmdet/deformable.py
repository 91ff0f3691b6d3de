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

    In two stages every group selects its own N proposals with encoder heads of its own; slices of
    the best K * N proposals would leave the best ones to group 0. Only the heads of the kept group
    run at inference. Without box refinement mmdet ties the encoder's prediction layers to the
    decoder's, which all groups share, and a group's own are ``memory_trans_fc`` and
    ``memory_trans_norm``.
    """
    xavier_modules = ('memory_trans_fc', )  # of the modules that each group has in two stages

    def __init__(self, *args, as_two_stage: bool = False, **kwargs) -> None:
        if as_two_stage:  # more noise on the encoder's heads has not been measured
            kwargs.setdefault('new_group_noise', 0.02)
        super().__init__(*args, as_two_stage=as_two_stage, **kwargs)

    @property
    def head_class(self) -> type:
        """In two stages a head that takes the encoder's predictions of every group."""
        return GroupDeformableDETRHead if self.as_two_stage else DeformableDETRHead

    @property
    def group_modules(self) -> List[str]:
        """The query embedding, or in two stages the encoder's head."""
        if not self.as_two_stage:
            return super().group_modules
        last = self.decoder.num_layers
        branches = [f'bbox_head.cls_branches.{last}', f'bbox_head.reg_branches.{last}']
        return ['memory_trans_fc', 'memory_trans_norm'] + branches * self.with_box_refine

    def pre_decoder(self, *args, **kwargs) -> Tuple[Dict, Dict]:
        """Prepare the queries of the groups that are decoded; see :class:`GroupQueries`.

        In two stages the stock detector prepares each group with the group's own rows, and the
        head gets the encoder's predictions group by group, shape (K, bs, num_rows, dim).
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
        """Initialize every group as the stock detector: Xavier depends on the number of rows."""
        super().init_weights()
        for name in self.xavier_modules if self.as_two_stage else ():
            for block in self.get_submodule(name).weight.detach().chunk(self.num_query_groups):
                nn.init.xavier_uniform_(block)

    def gen_encoder_output_proposals(self, memory: Tensor, memory_mask: Optional[Tensor],
                                     spatial_shapes: Tensor) -> Tuple[Tensor, Tensor]:
        """Make a proposal of every feature point; arguments and results as for the stock detector.

        In training the shapes cross to the CPU at once, and not number by number in each group.

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
        """Embed proposals, at any width; the stock detector's fits 256 channels.

        ``proposals`` are cxcywh before the sigmoid, shape (bs, N, 4), and become (bs, N, 2 * dim).
        """
        return super().get_proposal_pos_embed(proposals, num_pos_feats=self.embed_dims // 2)


def merge_groups(inputs: Sequence[dict]) -> dict:
    """Merge what the stock detector prepared for each group.

    Queries and their reference points are laid out group after group, and the encoder's
    predictions stacked; all else (memory, the mask of a group, ...) is the same for all groups.
    """
    merged = dict(inputs[0])
    for name in merged.keys() & {'query', 'query_pos', 'reference_points'}:
        merged[name] = torch.cat([x[name] for x in inputs], 1)  # (bs, K * N, dim)
    for name in merged.keys() & {'enc_outputs_class', 'enc_outputs_coord'}:
        if merged[name] is not None:
            merged[name] = torch.stack([x[name] for x in inputs])  # (K, bs, num_rows, dim)
    return merged
