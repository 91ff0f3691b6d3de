# Ablation: groups in the matching alone; all queries attend to each other.
_base_ = '../group_cond_detr_r50_12e.py'
model = dict(separate_self_attn=False)
