_base_ = 'group_mask2former_r50_50e.py'
# 12 epochs; the learning rate is divided by 10 for the last one.
train_cfg = dict(max_epochs=12)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[11], gamma=0.1)]
