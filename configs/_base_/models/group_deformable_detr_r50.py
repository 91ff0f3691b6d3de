# Deformable DETR as in mmdet, on four feature levels.
_base_ = 'group_cond_detr_r50.py'
ffn_cfg = dict(embed_dims=256, feedforward_channels=1024, ffn_drop=0.1)
model = dict(
    type='GroupDeformableDETR',
    num_feature_levels=4,
    with_box_refine=False,
    as_two_stage=False,
    backbone=dict(out_indices=(1, 2, 3)),
    neck=dict(
        _delete_=True,
        type='ChannelMapper',
        in_channels=[512, 1024, 2048],
        kernel_size=1,
        out_channels=256,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=4),
    encoder=dict(
        _delete_=True,
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_levels=4, dropout=0.1), ffn_cfg=ffn_cfg)),
    decoder=dict(
        _delete_=True,
        num_layers=6,
        return_intermediate=True,
        post_norm_cfg=None,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.1),
            cross_attn_cfg=dict(embed_dims=256, num_levels=4, dropout=0.1),
            ffn_cfg=ffn_cfg)),
    positional_encoding=dict(offset=-0.5),
    bbox_head=dict(type='GroupDeformableDETRHead', sync_cls_avg_factor=True))
