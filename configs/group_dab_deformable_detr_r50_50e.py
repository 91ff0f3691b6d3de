_base_ = 'group_dab_deformable_detr_r50_12e.py'
# 50 epochs; the learning rate is divided by 10 for the last ten.
train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[40], gamma=0.1)]
