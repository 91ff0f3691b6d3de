_base_ = 'group_dn_detr_r50_dc5_50e.py'
# The baseline without groups: DN-DETR-DC5.
model = dict(num_query_groups=1)
