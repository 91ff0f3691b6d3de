# A small detector: MobileNetV2 at stride 16, one encoder layer, three decoder layers, no dropout.
_base_ = 'group_cond_detr_r50.py'
attention = dict(attn_drop=0., proj_drop=0.)
ffn = dict(feedforward_channels=1024, ffn_drop=0.)
model = dict(
    num_queries=100,
    backbone=dict(
        _delete_=True,
        type='EndingMobileNetV2',
        out_indices=(4, ),
        frozen_stages=0,
        norm_cfg=dict(type='BN', requires_grad=False),
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://mmdet/mobilenet_v2')),
    neck=dict(in_channels=[96]),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(attn_drop=0., dropout_layer=dict(drop_prob=0.)),
            ffn_cfg=ffn)),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)))
