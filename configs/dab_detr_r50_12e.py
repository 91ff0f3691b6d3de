_base_ = 'group_dab_detr_r50_12e.py'
# The baseline without groups: DAB-DETR.
model = dict(num_query_groups=1)
