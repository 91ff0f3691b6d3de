# Mask2Former as in mmdet, on COCO's instances.
_base_ = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
custom_imports = dict(imports=['groupdetr_mmdet'], allow_failed_imports=False)
model = dict(
    type='GroupMask2Former',
    num_query_groups=11,
    panoptic_head=dict(type='GroupMask2FormerHead'),
    train_cfg=dict(assigner=dict(type='GroupHungarianAssigner')))

# As in mmdet: 368750 iterations of 16 images; the learning rate drops twice.
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=50, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[44, 48], gamma=0.1)]
default_hooks = dict(
    checkpoint=dict(_delete_=True, type='AtomicCheckpointHook', interval=1, max_keep_ckpts=3))
log_processor = dict(by_epoch=True)
