_base_ = 'group_dn_detr_r50_12e.py'
# The baseline without groups: DN-DETR.
model = dict(num_query_groups=1)
