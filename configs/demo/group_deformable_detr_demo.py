# Two feature levels, with strides 8 and 16, and box refinement.
_base_ = 'group_cond_detr_demo.py'
attention = dict(embed_dims=128, num_heads=4, dropout=0.)
deformable = dict(embed_dims=128, num_heads=4, num_levels=2, dropout=0.)
ffn = dict(embed_dims=128, feedforward_channels=256, ffn_drop=0.)
model = dict(
    type='GroupDeformableDETR',
    num_feature_levels=2,
    with_box_refine=True,
    as_two_stage=False,
    backbone=dict(out_indices=(1, 2)),
    neck=dict(
        _delete_=True,
        type='ChannelMapper',
        in_channels=[32, 64],
        kernel_size=1,
        out_channels=128,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=2),
    encoder=dict(_delete_=True, num_layers=1,
                 layer_cfg=dict(self_attn_cfg=deformable, ffn_cfg=ffn)),
    decoder=dict(
        _delete_=True,
        num_layers=2,
        return_intermediate=True,
        post_norm_cfg=None,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=deformable, ffn_cfg=ffn)),
    positional_encoding=dict(offset=-0.5),
    bbox_head=dict(type='GroupDeformableDETRHead'))
