_base_ = 'group_deformable_detr_demo.py'
# The baseline without groups: Deformable DETR.
model = dict(num_query_groups=1)
