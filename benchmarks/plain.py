"""The baseline: a straightforward implementation of groups with stock mmdet alone.

Self-attention is mmdet's ``bmm`` attention on queries folded by group. Matching calls the stock
assigner for each layer, image and group. Losses are the stock head's. Names of parameters, results
and gradients are as in :class:`groupdetr_mmdet.GroupConditionalDETR`.
"""
from typing import Optional, Tuple

import torch
from mmdet.models.detectors import ConditionalDETR
from mmdet.models.layers.transformer.utils import ConditionalAttention
from mmdet.models.task_modules import AssignResult, HungarianAssigner
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor, nn


class PlainGroupAttention(ConditionalAttention):
    """``ConditionalAttention`` inside each group of ``num_queries`` queries."""

    def __init__(self, *args, num_queries: int, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.num_queries = num_queries

    def forward_attn(self, query: Tensor, key: Tensor, value: Tensor,
                     **kwargs) -> Tuple[Tensor, Tensor]:
        """Attend; the tensors have shape (bs, K * N, dim)."""
        folded = (x.reshape(-1, self.num_queries, x.size(-1)) for x in (query, key, value))
        out, weights = super().forward_attn(*folded, **kwargs)
        return out.reshape(query.size(0), -1, out.size(-1)), weights


@TASK_UTILS.register_module()
class PlainGroupAssigner(HungarianAssigner):
    """K calls of ``HungarianAssigner``, where K is ``num_query_groups``."""

    def __init__(self, *, num_query_groups: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.num_query_groups = num_query_groups

    def assign(self, pred_instances: InstanceData, gt_instances: InstanceData,
               img_meta: Optional[dict] = None, **kwargs) -> AssignResult:
        """Match the K * N predictions of one layer and image, group by group."""
        group_size = len(pred_instances) // self.num_query_groups
        results = [
            super(PlainGroupAssigner, self).assign(
                pred_instances[g * group_size:(g + 1) * group_size], gt_instances, img_meta)
            for g in range(self.num_query_groups)
        ]
        gt_inds, labels = (torch.cat([getattr(result, name) for result in results])
                           for name in ('gt_inds', 'labels'))
        return AssignResult(len(gt_instances), gt_inds, max_overlaps=None, labels=labels)


@MODELS.register_module()
class PlainGroupConditionalDETR(ConditionalDETR):
    """``ConditionalDETR`` with ``num_query_groups`` groups of queries, all at inference too."""

    def __init__(self, *, num_query_groups: int, **kwargs) -> None:
        self.num_query_groups = num_query_groups
        super().__init__(**kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        for layer in self.decoder.layers:
            layer.self_attn = PlainGroupAttention(
                num_queries=self.num_queries, **layer.self_attn_cfg)
        self.query_embedding = nn.Embedding(self.num_query_groups * self.num_queries,
                                            self.embed_dims)
