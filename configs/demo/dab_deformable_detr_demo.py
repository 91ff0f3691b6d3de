_base_ = 'group_dab_deformable_detr_demo.py'
# The baseline without groups: DAB-Deformable-DETR.
model = dict(num_query_groups=1)
