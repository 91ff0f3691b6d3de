_base_ = 'group_dino_4scale_r50_12e.py'
# The baseline without groups: DINO.
model = dict(num_query_groups=1)
