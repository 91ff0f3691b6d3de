_base_ = 'group_cond_detr_r50_dc5_50e.py'
# The baseline without groups: Conditional DETR-DC5.
model = dict(num_query_groups=1)
