_base_ = 'group_cond_detr_demo.py'
model = dict(
    type='GroupDABDETR',
    positional_encoding=dict(temperature=20),
    bbox_head=dict(type='GroupDABDETRHead'))
