# Ablation: groups in the assignment alone, while all queries attend to each other.
_base_ = '../group_cond_detr_r50_12e.py'
model = dict(separate_self_attn=False)
