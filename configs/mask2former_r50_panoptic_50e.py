_base_ = 'group_mask2former_r50_panoptic_50e.py'
# The baseline without groups: Mask2Former.
model = dict(num_query_groups=1)
