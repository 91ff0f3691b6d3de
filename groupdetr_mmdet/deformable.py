"""Deformable DETR with groups of queries: plain, with box refinement, in two stages."""
import contextlib
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.detectors import DeformableDETR
from mmdet.registry import MODELS
from torch import Tensor, nn

from .criterion import GroupCriterion
from .group_queries import GroupQueries


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

    @property
    def group_modules(self) -> List[str]:
        """The query embedding, or in two stages the encoder's head."""
        if not self.as_two_stage:
            return super().group_modules
        last = self.decoder.num_layers
        branches = [f'bbox_head.cls_branches.{last}', f'bbox_head.reg_branches.{last}']
        return ['memory_trans_fc', 'memory_trans_norm'] + branches * self.with_box_refine

    def pre_decoder(self, *args, **kwargs) -> Tuple[Dict, Dict]:
        """Prepare the queries of the groups that are decoded.

        In two stages each group is prepared by the stock detector with the group's own rows.

        Args:
            args, kwargs: As for the stock detector.

        Returns:
            tuple[dict, dict]: As of :meth:`GroupQueries.pre_decoder`. In two stages the inputs of
            the head are the encoder's predictions, group by group, shape (K, bs, num_rows, dim).
        """
        if not self.as_two_stage:
            return super().pre_decoder(*args, **kwargs)
        prepare = super(GroupQueries, self).pre_decoder
        layers = [layer for name in self.group_modules
                  for layer in self.get_submodule(name).modules()]
        inputs = []
        for parameters in blocks_of_groups(layers, self.num_query_groups, self.decoded_groups):
            with replaced_parameters(parameters):
                inputs.append(prepare(*args, **kwargs))
        decoder_inputs, head_inputs = (merge_groups(x) for x in zip(*inputs))
        return decoder_inputs, head_inputs

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


def blocks_of_groups(layers: Sequence[nn.Module], num_groups: int,
                     groups: Sequence[int]) -> Iterator[Dict[nn.Module, Dict[str, Tensor]]]:
    """Yield, of each group, the layers with the group's block of rows of their parameters."""
    blocks = [(layer, name, x.chunk(num_groups)) for layer in layers
              for name, x in layer.named_parameters(recurse=False)]
    for group in groups:
        parameters = {layer: {} for layer in layers}
        for layer, name, rows in blocks:
            parameters[layer][name] = rows[group]
        yield parameters


@contextlib.contextmanager
def replaced_parameters(replacements: Dict[nn.Module, Dict[str, Tensor]]) -> Iterator[None]:
    """Let layers compute with other tensors than their parameters, also while traced.

    ``torch.func.functional_call`` does the same, and refuses to be traced for deployment.
    """
    parameters = {layer: dict(layer._parameters) for layer in replacements}
    try:
        for layer, tensors in replacements.items():
            layer._parameters.update(tensors)
        yield
    finally:
        for layer, tensors in parameters.items():
            layer._parameters.update(tensors)


def merge_groups(inputs: Sequence[dict]) -> dict:
    """Merge what the stock detector prepared for each group.

    Args:
        inputs (list[dict]): Of each group. Queries and their reference points, shape
            (bs, N, dim), are laid out group after group; the encoder's predictions are stacked;
            all else (memory, the mask of one group, ...) is the same for all groups.

    Returns:
        dict: Of all groups.
    """
    merged = dict(inputs[0])
    for name in merged.keys() & {'query', 'query_pos', 'reference_points'}:
        merged[name] = torch.cat([x[name] for x in inputs], 1)  # (bs, K * N, dim)
    for name in merged.keys() & {'enc_outputs_class', 'enc_outputs_coord'}:
        if merged[name] is not None:
            merged[name] = torch.stack([x[name] for x in inputs])  # (K, bs, num_rows, dim)
    return merged
