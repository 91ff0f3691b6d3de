_base_ = [
    '_base_/models/group_dab_deformable_detr_r50.py', '_base_/datasets/coco_detr.py',
    '_base_/schedules/dab_deformable_detr_12e.py', '_base_/default_runtime.py'
]
