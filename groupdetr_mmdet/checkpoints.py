"""What a checkpoint's names and query rows mean, and how they change between codebases and K."""
import logging
import re
from typing import Dict, Mapping, Optional, Sequence, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor

from .errors import ConfigError
from .groups import count_groups, group_rows

QUERY_EMBEDDING = 'query_embedding.weight'
Rules = Sequence[Tuple[str, str]]


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
    if saved_num_queries is None and old > 1:
        print_log(
            f'{QUERY_EMBEDDING}: the checkpoint does not say its num_queries; its {len(rows)} '
            f'rows are taken for {old} groups of {num_queries}. tools/convert_checkpoint.py knows '
            'checkpoints of other detectors.', logger='current', level=logging.WARNING)
    if old == new:
        return rows
    how = 'the first groups are kept' if new < old else 'the groups are repeated'
    print_log(
        f'{QUERY_EMBEDDING}: the checkpoint has num_query_groups={old}, the model {new}; {how}.',
        logger='current')
    return repeat_groups(rows, num_queries, new)


def repeat_groups(rows: Tensor,
                  num_queries: int,
                  num_query_groups: int,
                  noise: float = 0.,
                  seed: int = 0) -> Tensor:
    """Keep the first groups, or repeat the groups in order.

    Groups with equal rows are matched alike, get equal gradients and stay equal: a training that
    starts from repeated groups needs noise to tell them apart.

    Args:
        rows (Tensor): Rows of K' groups, shape (K' * N, dim).
        num_queries (int): Queries of one group, N.
        num_query_groups (int): Number of groups K to return.
        noise (float): Standard deviation of the noise on the repeated groups, relative to the
            standard deviation of ``rows``. The first K' groups have none. Defaults to 0.
        seed (int): Seed of the noise. Defaults to 0.

    Returns:
        Tensor: Shape (K * N, dim).
    """
    old = count_groups(len(rows), num_queries)
    groups = [rows[group_rows(group % old, num_queries)] for group in range(num_query_groups)]
    generator = torch.Generator().manual_seed(seed)
    for group in range(old, num_query_groups if noise else 0):
        sample = torch.randn(groups[group].shape, generator=generator).to(rows)
        groups[group] = groups[group] + noise * rows.std() * sample
    return torch.cat(groups)


# Another codebase's name -> ours: regular expressions, applied in order.

PARTS = (
    (r'^input_proj\.', 'neck.convs.0.conv.'),
    (r'^query_embed\.', 'query_embedding.'),
    (r'^class_embed\.', 'bbox_head.fc_cls.'),
    (r'^bbox_embed\.layers\.0\.', 'bbox_head.reg_ffn.layers.0.0.'),
    (r'^bbox_embed\.layers\.1\.', 'bbox_head.reg_ffn.layers.1.'),
    (r'^bbox_embed\.layers\.2\.', 'bbox_head.fc_reg.'),
    (r'^transformer\.', ''),
)

# Atten4Vis/ConditionalDETR, branches main and GroupDETR
OFFICIAL_NAMES = PARTS + (
    (r'^backbone\.0\.body\.', 'backbone.'),
    (r'^decoder\.norm\.', 'decoder.post_norm.'),
    (r'\.linear1\.', '.ffn.layers.0.0.'),
    (r'\.linear2\.', '.ffn.layers.1.'),
    (r'\.norm1\.', '.norms.0.'),
    (r'\.norm2\.', '.norms.1.'),
    (r'\.norm3\.', '.norms.2.'),
    (r'\.sa_(\w+_proj)\.', r'.self_attn.\1.'),
    (r'\.ca_(\w+_proj)\.', r'.cross_attn.\1.'),
    (r'^(encoder\.layers\.\d+\.self_attn)\.', r'\1.attn.'),
)

# IDEA-Research/detrex, whose backbone is detectron2's
DETREX_NAMES = PARTS + (
    (r'^backbone\.stem\.', 'backbone.'),
    *((rf'^backbone\.res{stage + 1}\.', f'backbone.layer{stage}.') for stage in range(1, 5)),
    (r'^(backbone\..*)conv(\d)\.norm\.', r'\1bn\2.'),
    (r'^(backbone\..*)\.shortcut\.norm\.', r'\1.downsample.1.'),
    (r'^(backbone\..*)\.shortcut\.', r'\1.downsample.0.'),
    (r'^decoder\.post_norm_layer\.', 'decoder.post_norm.'),
    (r'^(encoder\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
    (r'^(decoder\.layers\.\d+)\.attentions\.0\.', r'\1.self_attn.'),
    (r'^(decoder\.layers\.\d+)\.attentions\.1\.', r'\1.cross_attn.'),
    (r'\.query_(\w+_proj)\.', r'.q\1.'),
    (r'\.key_(\w+_proj)\.', r'.k\1.'),
    (r'\.value_proj\.', '.v_proj.'),
    (r'\.ffns\.0\.', '.ffn.'),
)


def rename(name: str, rules: Rules) -> str:
    """Apply all rules, pairs of a regular expression and its replacement, in order."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def from_official(state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Rename the tensors of the official code's state dict to ours."""
    return {rename(name, OFFICIAL_NAMES): tensor for name, tensor in state_dict.items()}
