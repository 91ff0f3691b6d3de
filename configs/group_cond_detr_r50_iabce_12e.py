# Not in the paper, and not trained yet: the classification loss of RF-DETR, with its weight.
_base_ = 'group_cond_detr_r50_12e.py'
model = dict(bbox_head=dict(loss_cls=dict(_delete_=True, type='IABCELoss', loss_weight=1.0)))
