_base_ = 'group_dino_4scale_swin-l_36e.py'
# The baseline without groups: DINO with Swin-L.
model = dict(num_query_groups=1)
