_base_ = 'group_mask2former_demo.py'
# The baseline without groups: Mask2Former.
model = dict(num_query_groups=1)
