# The demo with Mosaic, MixUp and colors in the first epochs.
_base_ = ['group_cond_detr_demo.py', '../_base_/strong_augmentation.py']
mixed_epochs = 7  # of max_epochs; the rest with light augmentation

light, strong = _base_.train_pipeline, _base_.strong_augmentation
strong[0].transforms[0].img_scale = (128, 128)  # of CachedMosaic
strong[0].transforms[2].img_scale = (192, 192)  # of CachedMixUp
train_dataloader = dict(dataset=dict(pipeline=[*light[:2], *strong, *light[2:]]))
custom_hooks = [
    dict(type='PipelineSwitchHook', switch_epoch=mixed_epochs, switch_pipeline=light)
]
