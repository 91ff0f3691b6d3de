# DN-DETR: DAB-DETR with denoising queries, as many as fit into 100 (the Group DETR paper).
_base_ = 'group_dab_detr_r50.py'
model = dict(
    type='GroupDNDETR',
    bbox_head=dict(type='GroupDNDETRHead'),
    dn_cfg=dict(
        label_noise_scale=0.2,
        box_noise_scale=0.4,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100)))
