_base_ = [
    '_base_/models/group_deformable_detr_r50.py', '_base_/datasets/coco_detr.py',
    '_base_/schedules/deformable_detr_12e.py', '_base_/default_runtime.py'
]
