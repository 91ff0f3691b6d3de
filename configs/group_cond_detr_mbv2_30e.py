# For few images and for a CPU: a small pretrained backbone, images of at most 512 pixels a side.
# groupdetr prepare DATA --model small writes a config for a folder of images.
_base_ = [
    '_base_/models/group_cond_detr_mbv2.py', '_base_/datasets/coco_detr.py',
    '_base_/schedules/detr_12e.py', '_base_/default_runtime.py'
]
max_epochs = 30
scale = (512, 512)

train_pipeline = [
    dict(type='CheckedLoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
train_dataloader = dict(batch_size=4, drop_last=False, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=8, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[25], gamma=0.1)]
default_hooks = dict(logger=dict(interval=10))
auto_scale_lr = dict(base_batch_size=4)
