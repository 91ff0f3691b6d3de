_base_ = 'detr_12e.py'
train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[40], gamma=0.1)]
