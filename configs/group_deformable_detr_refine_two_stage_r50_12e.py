_base_ = 'group_deformable_detr_refine_r50_12e.py'
model = dict(as_two_stage=True)
