_base_ = 'group_dino_demo.py'
# The baseline without groups: DINO.
model = dict(num_query_groups=1)
