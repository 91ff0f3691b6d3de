# Deformable DETR with learned anchor boxes, box refinement and the decoder of DINO; no dropout.
_base_ = 'group_deformable_detr_r50.py'
ffn_cfg = dict(feedforward_channels=2048, ffn_drop=0.)
model = dict(
    type='GroupDABDeformableDETR',
    with_box_refine=True,
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(dropout=0.), ffn_cfg=ffn_cfg)),
    decoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(dropout=0.), cross_attn_cfg=dict(dropout=0.), ffn_cfg=ffn_cfg)),
    positional_encoding=dict(offset=0., temperature=20),
    bbox_head=dict(type='GroupDABDeformableDETRHead', loss_cls=dict(loss_weight=1.0)),
    test_cfg=dict(max_per_img=300))
