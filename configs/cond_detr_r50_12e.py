_base_ = 'group_cond_detr_r50_12e.py'
# The baseline without groups: Conditional DETR.
model = dict(num_query_groups=1)
