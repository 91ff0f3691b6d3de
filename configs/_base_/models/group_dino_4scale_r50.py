# DINO as in mmdet: two stages, box refinement, denoising queries, no dropout.
_base_ = 'group_deformable_detr_r50.py'
ffn_cfg = dict(feedforward_channels=2048, ffn_drop=0.)
model = dict(
    type='GroupDINO',
    num_queries=900,
    with_box_refine=True,
    as_two_stage=True,
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(dropout=0.), ffn_cfg=ffn_cfg)),
    decoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(dropout=0.), cross_attn_cfg=dict(dropout=0.), ffn_cfg=ffn_cfg)),
    positional_encoding=dict(offset=0., temperature=20),
    bbox_head=dict(type='GroupDINOHead', loss_cls=dict(loss_weight=1.0)),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100)),
    test_cfg=dict(max_per_img=300))
