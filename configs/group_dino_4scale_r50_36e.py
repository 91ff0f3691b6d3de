_base_ = 'group_dino_4scale_r50_12e.py'
# 36 epochs; the learning rate is divided by 10 for the last six.
train_cfg = dict(max_epochs=36)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[30], gamma=0.1)]
