# Groups by two lines in a stock config: mmdet's DETR, 3 groups of its usual 100 queries.
# Limits: docs/families.md.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
custom_imports = dict(imports=['groupdetr_mmdet'], allow_failed_imports=False)
model = dict(
    num_queries=300,
    backbone=dict(
        init_cfg=dict(checkpoint='https://download.pytorch.org/models/resnet50-0676ba61.pth')),
    train_cfg=dict(assigner=dict(type='GroupHungarianAssigner', num_query_groups=3)))
train_cfg = dict(max_epochs=12)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[11], gamma=0.1)]
