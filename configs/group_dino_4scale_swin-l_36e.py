_base_ = 'group_dino_4scale_r50_36e.py'
# Swin-L, pretrained on ImageNet-22k at 384 x 384, with activation checkpointing.
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        pretrain_img_size=384,
        embed_dims=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=12,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        with_cp=True,
        convert_weights=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_large_patch4_window12_384_22k.pth')),
    neck=dict(in_channels=[384, 768, 1536]))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[27, 33], gamma=0.1)]
