# DAB-DETR as in mmdet: anchor boxes as queries, PReLU, no dropout.
_base_ = 'group_cond_detr_r50.py'
ffn_cfg = dict(
    embed_dims=256, feedforward_channels=2048, num_fcs=2, ffn_drop=0., act_cfg=dict(type='PReLU'))
model = dict(
    type='GroupDABDETR',
    encoder=dict(
        _delete_=True,
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0., batch_first=True),
            ffn_cfg=ffn_cfg)),
    decoder=dict(
        _delete_=True,
        num_layers=6,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, cross_attn=False),
            cross_attn_cfg=dict(embed_dims=256, num_heads=8, cross_attn=True),
            ffn_cfg=ffn_cfg)),
    positional_encoding=dict(temperature=20),
    bbox_head=dict(type='GroupDABDETRHead', loss_cls=dict(loss_weight=1.0)),
    test_cfg=dict(max_per_img=300))
