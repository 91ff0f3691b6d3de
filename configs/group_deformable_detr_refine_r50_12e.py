_base_ = 'group_deformable_detr_r50_12e.py'
model = dict(with_box_refine=True)
