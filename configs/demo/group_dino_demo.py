_base_ = 'group_deformable_detr_demo.py'
model = dict(
    type='GroupDINO',
    as_two_stage=True,
    positional_encoding=dict(offset=0., temperature=20),
    bbox_head=dict(type='GroupDINOHead'),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=12)))
