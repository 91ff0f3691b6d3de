_base_ = 'group_dab_detr_r50_12e.py'
# DC5: the last stage is dilated instead of strided, so that the memory has stride 16.
model = dict(backbone=dict(type='DC5ResNet'))
