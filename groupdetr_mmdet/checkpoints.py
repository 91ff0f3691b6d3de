"""What a checkpoint's query rows mean, and how they change with K."""
import re
from typing import Dict, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from .errors import ConfigError
from .groups import count_groups, group_rows

QUERY_EMBEDDING = 'query_embedding.weight'


def adapt_query_rows(rows: Tensor,
                     shape: torch.Size,
                     num_queries: int,
                     saved_num_queries: Optional[int] = None) -> Tensor:
    """Give a checkpoint's query embedding the number of groups of a model.

    Fewer groups keep the first ones; more groups repeat them in order.

    Args:
        rows (Tensor): The checkpoint's embedding, shape (K' * N, dim).
        shape (torch.Size): Shape of the model's embedding, (K * N, dim).
        num_queries (int): Queries of one group, N, in the model.
        saved_num_queries (int, optional): N in the checkpoint, where it says.

    Returns:
        Tensor: Shape (K * N, dim).

    Raises:
        ConfigError: If the checkpoint has another N or another width.
    """
    same_groups = saved_num_queries in (None, num_queries) and len(rows) % num_queries == 0
    if not same_groups or rows.shape[1:] != shape[1:]:
        saved = '' if saved_num_queries is None else f' in groups of {saved_num_queries}'
        raise ConfigError(
            f'{QUERY_EMBEDDING} has shape {tuple(rows.shape)}{saved} in the checkpoint and '
            f'{tuple(shape)} in groups of model.num_queries={num_queries} in the model: only '
            'num_query_groups may differ; use the num_queries and the width of the checkpoint.')
    old, new = count_groups(len(rows), num_queries), count_groups(shape[0], num_queries)
    if old == new:
        return rows
    how = 'the first groups are kept' if new < old else 'the groups are repeated'
    print_log(
        f'{QUERY_EMBEDDING}: the checkpoint has num_query_groups={old}, the model {new}; {how}.',
        logger='current')
    return torch.cat([rows[group_rows(group % old, num_queries)] for group in range(new)])

# Official name -> ours, applied in this order; the official code is Atten4Vis/ConditionalDETR.
OFFICIAL_NAMES = (
    (r'^backbone\.0\.body\.', 'backbone.'),
    (r'^input_proj\.', 'neck.convs.0.conv.'),
    (r'^query_embed\.', 'query_embedding.'),
    (r'^class_embed\.', 'bbox_head.fc_cls.'),
    (r'^bbox_embed\.layers\.0\.', 'bbox_head.reg_ffn.layers.0.0.'),
    (r'^bbox_embed\.layers\.1\.', 'bbox_head.reg_ffn.layers.1.'),
    (r'^bbox_embed\.layers\.2\.', 'bbox_head.fc_reg.'),
    (r'^transformer\.decoder\.norm\.', 'decoder.post_norm.'),
    (r'^transformer\.', ''),
    (r'\.linear1\.', '.ffn.layers.0.0.'),
    (r'\.linear2\.', '.ffn.layers.1.'),
    (r'\.norm1\.', '.norms.0.'),
    (r'\.norm2\.', '.norms.1.'),
    (r'\.norm3\.', '.norms.2.'),
    (r'\.sa_(\w+_proj)\.', r'.self_attn.\1.'),
    (r'\.ca_(\w+_proj)\.', r'.cross_attn.\1.'),
    (r'^(encoder\.layers\.\d+\.self_attn)\.', r'\1.attn.'),
)


def rename(name: str, rules: Sequence[Tuple[str, str]]) -> str:
    """Apply all rules, pairs of a regular expression and its replacement, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def from_official(state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Rename the tensors of the official code's state dict to ours."""
    return {rename(name, OFFICIAL_NAMES): tensor for name, tensor in state_dict.items()}
