_base_ = 'group_dab_detr_demo.py'
model = dict(
    type='GroupDNDETR',
    bbox_head=dict(type='GroupDNDETRHead'),
    dn_cfg=dict(
        label_noise_scale=0.2,
        box_noise_scale=0.4,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=12)))
