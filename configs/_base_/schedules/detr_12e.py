# The official recipe: AdamW at 1e-4, the backbone at a tenth, gradients clipped at 0.1, 8 GPUs x 2
# images, the learning rate divided by 10 for the last epoch of 12.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1, decay_mult=1.0)}))

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[11], gamma=0.1)]

auto_scale_lr = dict(enable=False, base_batch_size=16)
