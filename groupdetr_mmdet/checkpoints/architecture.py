"""Which Conditional DETR a set of tensors belongs to, and whether it is all of it."""
import re
from typing import Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from torch import Tensor

from ..group_queries import QUERY_EMBEDDING

Shapes = Dict[str, Tuple[int, ...]]


class Architecture(NamedTuple):
    """The sizes of a Conditional DETR, under the names of mmdet's tensors.

    Attributes:
        depth (int, optional): Depth of the ResNet, None for another backbone.
        stem_channels (int): Channels of the ResNet's first convolution.
        base_channels (int): Channels of the ResNet's first stage.
        in_channels (int): Channels that the neck gets.
        width (int): Channels of the transformer.
        rows (int): Rows of the query embedding, K * N.
        num_classes (int): Rows of the classification layer.
        enc_layers (int): Layers of the encoder.
        dec_layers (int): Layers of the decoder.
        enc_feedforward (int): Hidden channels of the encoder's FFN.
        dec_feedforward (int): Hidden channels of the decoder's FFN.
    """
    depth: Optional[int]
    stem_channels: int
    base_channels: int
    in_channels: int
    width: int
    rows: int
    num_classes: int
    enc_layers: int
    dec_layers: int
    enc_feedforward: int
    dec_feedforward: int

    def __str__(self) -> str:
        backbone = f'ResNet-{self.depth}' if self.depth else 'a backbone that is no plain ResNet'
        return (f'{backbone}, {self.enc_layers} encoder and {self.dec_layers} decoder layers, '
                f'{self.width} channels')


def read_architecture(tensors: Mapping[str, Tensor]) -> Architecture:
    """Infer the sizes from a few tensors; :func:`compare` then checks all.

    A size whose tensor is missing is that of the published models.

    Args:
        tensors (dict[str, Tensor]): A checkpoint under mmdet's names.
    """

    def size(name: str, dim: int, default: int) -> int:
        found = name in tensors and tensors[name].ndim > dim
        return tensors[name].shape[dim] if found else default

    depth = resnet_depth(tensors)
    return Architecture(
        depth=depth,
        stem_channels=size('backbone.conv1.weight', 0, 64),
        base_channels=size('backbone.layer1.0.conv1.weight', 0, 64),
        in_channels=size('neck.convs.0.conv.weight', 1, 2048),
        width=size(QUERY_EMBEDDING, 1, 256),
        rows=size(QUERY_EMBEDDING, 0, 300),
        num_classes=size('bbox_head.fc_cls.bias', 0, 80),
        enc_layers=max(1, count_blocks(tensors, 'encoder.layers')),
        dec_layers=max(1, count_blocks(tensors, 'decoder.layers')),
        enc_feedforward=size('encoder.layers.0.ffn.layers.0.0.bias', 0, 2048),
        dec_feedforward=size('decoder.layers.0.ffn.layers.0.0.bias', 0, 2048))


def count_blocks(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of entries of a ``ModuleList``, by the highest index."""
    found = (re.match(rf'{re.escape(prefix)}\.(\d+)\.', name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def resnet_depth(tensors: Mapping[str, Tensor]) -> Optional[int]:
    """Depth of the ResNet as mmdet counts it, None if the backbone is none of mmdet's plain ones.

    Dilation (DC5) leaves no trace in the tensors.
    """
    blocks = tuple(count_blocks(tensors, f'backbone.layer{i}') for i in range(1, 5))
    bottleneck = 'backbone.layer1.0.conv3.weight' in tensors
    if 'backbone.conv1.weight' not in tensors:
        return None
    for depth, (block, stage_blocks) in ResNet.arch_settings.items():
        if stage_blocks == blocks and (block.expansion > 1) == bottleneck:
            return depth
    return None


def expected_shapes(arch: Architecture) -> Shapes:
    """Shapes of all tensors of mmdet's own model of these sizes; takes no memory for weights.

    Without a known ResNet the backbone's are left out.
    """
    layer = dict(
        self_attn_cfg=dict(embed_dims=arch.width, num_heads=1),
        ffn_cfg=dict(embed_dims=arch.width, feedforward_channels=arch.enc_feedforward))
    with torch.device('meta'):
        model = MODELS.build(dict(
            type='ConditionalDETR',
            num_queries=arch.rows,
            backbone=dict(
                type='ResNet', depth=arch.depth or 18, out_indices=(3, ),
                stem_channels=arch.stem_channels, base_channels=arch.base_channels),
            neck=dict(
                type='ChannelMapper', in_channels=[arch.in_channels], kernel_size=1,
                out_channels=arch.width, act_cfg=None, norm_cfg=None, num_outs=1),
            encoder=dict(num_layers=arch.enc_layers, layer_cfg=layer),
            decoder=dict(
                num_layers=arch.dec_layers,
                return_intermediate=True,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=arch.width, num_heads=1),
                    cross_attn_cfg=dict(embed_dims=arch.width, num_heads=1, cross_attn=True),
                    ffn_cfg=dict(
                        embed_dims=arch.width, feedforward_channels=arch.dec_feedforward))),
            positional_encoding=dict(num_feats=arch.width // 2, normalize=True),
            bbox_head=dict(
                type='ConditionalDETRHead', num_classes=arch.num_classes, embed_dims=arch.width,
                loss_cls=dict(type='FocalLoss', use_sigmoid=True))))
    return {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
        if arch.depth or not name.startswith('backbone.')
    }


class Differences(NamedTuple):
    """How tensors differ from what they should be; each entry a line for the reader."""
    left_over: List[str]
    missing: List[str]
    reshaped: List[str]

    def __str__(self) -> str:
        kinds = {
            'left over, no part of Conditional DETR': self.left_over,
            'missing': self.missing,
            'of another shape': self.reshaped
        }
        return '\n'.join(f'  {len(lines)} {kind}:\n    ' + '\n    '.join(lines)
                         for kind, lines in kinds.items() if lines)


def compare(tensors: Mapping[str, Tensor], shapes: Shapes,
            sources: Mapping[str, str]) -> Differences:
    """List what is left over, missing or of another shape.

    Args:
        tensors (dict[str, Tensor]): A checkpoint under mmdet's names.
        shapes (dict[str, tuple]): What it should hold.
        sources (dict[str, str]): The name in the file of each name of ``tensors``.
    """
    return Differences(
        left_over=[sources[name] for name in tensors if name not in shapes],
        missing=[name for name in shapes if name not in tensors],
        reshaped=[
            f'{sources[name]}: {tuple(tensors[name].shape)}, should be {shape}'
            for name, shape in shapes.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ])
