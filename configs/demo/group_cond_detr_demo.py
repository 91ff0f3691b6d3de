# Minutes on two CPU cores: generated images of 128 x 128, a narrow ResNet-18 at stride 16, from
# scratch. Run by tools/demo.py.
_base_ = [
    '../_base_/models/group_cond_detr_r50.py', '../_base_/datasets/shapes.py',
    '../_base_/schedules/detr_12e.py', '../_base_/default_runtime.py'
]
max_epochs = 10

attention = dict(embed_dims=128, num_heads=4, attn_drop=0., proj_drop=0.)
ffn = dict(embed_dims=128, feedforward_channels=256, ffn_drop=0.)
model = dict(
    num_queries=16,
    num_query_groups=6,
    data_preprocessor=dict(mean=[127.] * 3, std=[60.] * 3),
    backbone=dict(
        depth=18,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2, ),
        frozen_stages=-1,
        norm_cfg=dict(requires_grad=True),
        norm_eval=False,
        zero_init_residual=False,
        init_cfg=None),
    neck=dict(in_channels=[64], out_channels=128),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=128, num_heads=4, attn_drop=0., dropout_layer=dict(drop_prob=0.)),
            ffn_cfg=ffn)),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)),
    positional_encoding=dict(num_feats=64),
    bbox_head=dict(num_classes=4, embed_dims=128))

train_dataloader = dict(batch_size=8)
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
