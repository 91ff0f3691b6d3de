# Instance segmentation of the generated shapes, whose masks are their polygons.
_base_ = [
    '../_base_/datasets/shapes.py', '../_base_/schedules/detr_12e.py',
    '../_base_/default_runtime.py'
]
max_epochs = 10

num_classes = 4
attention = dict(embed_dims=128, num_heads=4, dropout=0., batch_first=True)
deformable = dict(
    embed_dims=128, num_heads=4, num_levels=3, num_points=4, dropout=0., batch_first=True)
ffn = dict(
    embed_dims=128, feedforward_channels=256, num_fcs=2, ffn_drop=0.,
    act_cfg=dict(type='ReLU', inplace=True))
encoding = dict(num_feats=64, normalize=True)
model = dict(
    type='GroupMask2Former',
    num_query_groups=6,
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[127.] * 3, std=[60.] * 3, bgr_to_rgb=True,
        pad_size_divisor=32, pad_mask=True, mask_pad_value=0),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=16,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
        style='pytorch'),
    panoptic_head=dict(
        type='GroupMask2FormerHead',
        in_channels=[16, 32, 64, 128],
        strides=[4, 8, 16, 32],
        feat_channels=128,
        out_channels=128,
        num_things_classes=num_classes,
        num_stuff_classes=0,
        num_queries=16,
        num_transformer_feat_level=3,
        pixel_decoder=dict(
            type='MSDeformAttnPixelDecoder',
            num_outs=3,
            norm_cfg=dict(type='GN', num_groups=32),
            act_cfg=dict(type='ReLU'),
            encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=deformable, ffn_cfg=ffn)),
            positional_encoding=encoding),
        positional_encoding=encoding,
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
            init_cfg=None),
        loss_cls=dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=2.0, reduction='mean',
            class_weight=[1.0] * num_classes + [0.1]),
        loss_mask=dict(
            type='CrossEntropyLoss', use_sigmoid=True, reduction='mean', loss_weight=5.0),
        loss_dice=dict(
            type='DiceLoss', use_sigmoid=True, activate=True, reduction='mean', naive_dice=True,
            eps=1.0, loss_weight=5.0)),
    panoptic_fusion_head=dict(
        type='MaskFormerFusionHead', num_things_classes=num_classes, num_stuff_classes=0,
        loss_panoptic=None, init_cfg=None),
    train_cfg=dict(
        num_points=1024,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        assigner=dict(
            type='GroupHungarianAssigner',
            match_costs=[
                dict(type='ClassificationCost', weight=2.0),
                dict(type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                dict(type='DiceCost', weight=5.0, pred_act=True, eps=1.0)
            ]),
        sampler=dict(type='MaskPseudoSampler')),
    test_cfg=dict(
        panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=64, iou_thr=0.8,
        filter_low_score=True))

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[1].with_mask = test_pipeline[2].with_mask = True  # of LoadAnnotations
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=8e-4), paramwise_cfg=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='LinearLR', start_factor=1., end_factor=0.01, begin=7, end=max_epochs,
         convert_to_iter_based=True)
]
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=8)
