# Ablation: groups in the matching alone; all queries attend to each other.
_base_ = '../demo/group_cond_detr_demo.py'
model = dict(separate_self_attn=False)
