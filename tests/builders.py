"""Small models and batches for the tests."""
import copy
from typing import List, Optional, Sequence, Tuple

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

import groupdetr_mmdet  # noqa: F401

MATCH_COSTS = [
    dict(type='FocalLossCost', weight=2.0, eps=1e-8),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]


def detector_config(num_queries: int = 10, num_query_groups: Optional[int] = 3,
                    num_classes: int = 5, width: int = 32, num_heads: int = 4,
                    enc_layers: int = 1, dec_layers: int = 2, feedforward_channels: int = 64,
                    base_channels: int = 8, dropout: float = 0.) -> dict:
    """Config of a Group Conditional DETR, or of the stock one with ``num_query_groups=None``."""
    ffn = dict(embed_dims=width, feedforward_channels=feedforward_channels, num_fcs=2,
               ffn_drop=dropout)
    attention = dict(embed_dims=width, num_heads=num_heads, attn_drop=dropout, proj_drop=dropout)
    config = dict(
        type='GroupConditionalDETR', num_queries=num_queries, num_query_groups=num_query_groups,
        backbone=dict(
            type='ResNet', depth=18, base_channels=base_channels, num_stages=4, out_indices=(3, ),
            frozen_stages=1, norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True,
            style='pytorch'),
        neck=dict(
            type='ChannelMapper', in_channels=[8 * base_channels], kernel_size=1,
            out_channels=width, act_cfg=None, norm_cfg=None, num_outs=1),
        encoder=dict(num_layers=enc_layers, layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=width, num_heads=num_heads, dropout=dropout),
            ffn_cfg=ffn)),
        decoder=dict(num_layers=dec_layers, return_intermediate=True, layer_cfg=dict(
            self_attn_cfg=dict(attention, cross_attn=False),
            cross_attn_cfg=dict(attention, cross_attn=True), ffn_cfg=ffn)),
        positional_encoding=dict(num_feats=width // 2, normalize=True),
        bbox_head=dict(
            type='GroupConditionalDETRHead', num_classes=num_classes, embed_dims=width,
            loss_cls=dict(
                type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
            loss_bbox=dict(type='L1Loss', loss_weight=5.0),
            loss_iou=dict(type='GIoULoss', loss_weight=2.0)),
        train_cfg=dict(assigner=dict(type='GroupHungarianAssigner', match_costs=MATCH_COSTS)),
        test_cfg=dict(max_per_img=20))
    if num_query_groups is None:
        config.pop('num_query_groups')
        config['type'] = 'ConditionalDETR'
        config['bbox_head']['type'] = 'ConditionalDETRHead'
        config['train_cfg']['assigner']['type'] = 'HungarianAssigner'
    return copy.deepcopy(config)


def build(config: dict, seed: int = 0) -> torch.nn.Module:
    """Build and initialize a detector reproducibly, in training mode."""
    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(config))
    model.init_weights()
    return model.train()


def make_batch(sizes: Sequence[Tuple[int, int]] = ((64, 96), (96, 64)),
               num_gts: Sequence[int] = (3, 2), num_classes: int = 5,
               seed: int = 0) -> Tuple[torch.Tensor, List[DetDataSample]]:
    """Random images, padded at the bottom right, with random boxes."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(3, h, w, generator=generator) for h, w in sizes]
    targets = []
    for n in num_gts:
        centers = torch.rand(n, 2, generator=generator) * .6 + .2
        wh = torch.rand(n, 2, generator=generator) * .3 + .05
        labels = torch.randint(0, num_classes, (n, ), generator=generator)
        targets.append((labels, torch.cat([centers, wh], 1)))
    return collate(images, targets)


def collate(images: Sequence[torch.Tensor],
            targets: Sequence[tuple]) -> Tuple[torch.Tensor, List[DetDataSample]]:
    """Pad normalized images (3, H, W) to one size; targets are (labels, normalized cxcywh)."""
    height = max(image.shape[1] for image in images)
    width = max(image.shape[2] for image in images)
    inputs = torch.zeros(len(images), 3, height, width)
    samples = []
    for i, (image, (labels, boxes)) in enumerate(zip(images, targets)):
        h, w = image.shape[1:]
        inputs[i, :, :h, :w] = image
        sample = DetDataSample(metainfo=dict(
            img_id=i, img_path=f'image{i}.jpg', img_shape=(h, w), ori_shape=(h, w),
            scale_factor=(1., 1.), pad_shape=(height, width), batch_input_shape=(height, width)))
        half = boxes[:, 2:] / 2
        corners = torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)
        sample.gt_instances = InstanceData(
            labels=labels, bboxes=corners * corners.new_tensor([w, h, w, h]))
        samples.append(sample)
    return inputs, samples


def perturbed(model: nn.Module) -> nn.Module:
    """Let nothing of a model be equal or zero by initialization."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += .05 * torch.randn_like(parameter)
    return model


def group_rows(group: int, group_size: int) -> slice:
    """Return the rows that belong to one group."""
    return slice(group * group_size, (group + 1) * group_size)
