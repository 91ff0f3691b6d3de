_base_ = 'group_deformable_detr_demo.py'
model = dict(
    type='GroupDABDeformableDETR',
    positional_encoding=dict(offset=0., temperature=20),
    bbox_head=dict(type='GroupDABDeformableDETRHead'))
