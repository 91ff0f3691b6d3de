"""A small Mask2Former, with groups or mmdet's own, and images with masks."""
import copy
from typing import Optional

import torch
from builders import detector_config, make_batch
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.structures import PixelData

NUM_CLASSES = 5


def mask2former_config(num_query_groups: Optional[int] = 3, num_queries: int = 6, width: int = 32,
                       num_stuff: int = 0, num_things: int = NUM_CLASSES) -> ConfigDict:
    """Config of a Group Mask2Former, or of mmdet's with ``num_query_groups=None``."""
    attention = dict(embed_dims=width, num_heads=4, dropout=0., batch_first=True)
    deformable = dict(embed_dims=width, num_heads=4, num_levels=3, num_points=2, dropout=0.,
                      batch_first=True)
    ffn = dict(embed_dims=width, feedforward_channels=64, num_fcs=2, ffn_drop=0.,
               act_cfg=dict(type='ReLU', inplace=True))
    encoding = dict(num_feats=width // 2, normalize=True)
    backbone = dict(detector_config()['backbone'], out_indices=(0, 1, 2, 3))
    things = dict(num_things_classes=num_things, num_stuff_classes=num_stuff)
    weights = [1.] * (num_things + num_stuff) + [.1]
    config = dict(
        type='GroupMask2Former', num_query_groups=num_query_groups, backbone=backbone,
        panoptic_head=dict(
            type='GroupMask2FormerHead', in_channels=[8, 16, 32, 64], strides=[4, 8, 16, 32],
            feat_channels=width, out_channels=width, num_queries=num_queries, **things,
            num_transformer_feat_level=3,
            pixel_decoder=dict(
                type='MSDeformAttnPixelDecoder', num_outs=3,
                norm_cfg=dict(type='GN', num_groups=4), act_cfg=dict(type='ReLU'),
                encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=deformable, ffn_cfg=ffn)),
                positional_encoding=encoding),
            enforce_decoder_input_project=False, positional_encoding=encoding,
            transformer_decoder=dict(
                return_intermediate=True, num_layers=2, init_cfg=None,
                layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=2.,
                          reduction='mean', class_weight=weights),
            loss_mask=dict(type='CrossEntropyLoss', use_sigmoid=True, reduction='mean',
                           loss_weight=5.),
            loss_dice=dict(type='DiceLoss', use_sigmoid=True, activate=True, reduction='mean',
                           naive_dice=True, eps=1., loss_weight=5.)),
        panoptic_fusion_head=dict(
            type='MaskFormerFusionHead', loss_panoptic=None, init_cfg=None, **things),
        train_cfg=dict(
            num_points=64, oversample_ratio=3., importance_sample_ratio=.75,
            assigner=dict(type='GroupHungarianAssigner', match_costs=[
                dict(type='ClassificationCost', weight=2.),
                dict(type='CrossEntropyLossCost', weight=5., use_sigmoid=True),
                dict(type='DiceCost', weight=5., pred_act=True, eps=1.)]),
            sampler=dict(type='MaskPseudoSampler')),
        test_cfg=dict(panoptic_on=num_stuff > 0, semantic_on=False, instance_on=True,
                      max_per_image=20, iou_thr=.8, filter_low_score=True))
    if num_query_groups is None:
        config.pop('num_query_groups')
        config['type'], config['panoptic_head']['type'] = 'Mask2Former', 'Mask2FormerHead'
        config['train_cfg']['assigner']['type'] = 'HungarianAssigner'
    return ConfigDict(copy.deepcopy(config))


def same_points():
    """A ``torch.rand`` that draws the same points for every mask, whoever asks."""
    draw = torch.rand
    table = draw(1000, 2, generator=torch.Generator().manual_seed(0))

    def draw_points(*size, **kwargs):
        size = size[0] if isinstance(size[0], (tuple, list, torch.Size)) else size
        if len(size) == 3 and size[-1] == 2:
            return table[:size[1]].expand(size[0], -1, -1).clone()
        return draw(*size, **kwargs)

    return draw_points


def make_mask_batch(*args, num_stuff: int = 0, **kwargs):
    """Random images with ellipses, and with two halves of stuff."""
    inputs, samples = make_batch(*args, **kwargs)
    height, width = inputs.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    for sample in samples:
        left, top, right, bottom = sample.gt_instances.bboxes.T[..., None, None]
        inside = (((2 * x - left - right) / (right - left))**2 +
                  ((2 * y - top - bottom) / (bottom - top))**2) < 1
        masks = inside.to(torch.uint8).numpy()
        sample.gt_instances.masks = BitmapMasks(masks, height, width)
        if num_stuff:
            semantic = torch.where(x > width // 2, NUM_CLASSES, NUM_CLASSES + num_stuff - 1)
            semantic[inside.any(0)] = 255
            sample.gt_sem_seg = PixelData(sem_seg=semantic[None])
    return inputs, samples
