# Groups by two lines in a stock config: mmdet's DAB-DETR, 300 queries as 3 groups.
# Limits: docs/families.md.
_base_ = 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py'
custom_imports = dict(imports=['groupdetr_mmdet'], allow_failed_imports=False)
model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='https://download.pytorch.org/models/resnet50-0676ba61.pth')),
    train_cfg=dict(assigner=dict(type='GroupHungarianAssigner', num_query_groups=3)))
train_cfg = dict(max_epochs=12)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[11], gamma=0.1)]
