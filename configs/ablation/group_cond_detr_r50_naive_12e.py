# Ablation: no groups; each object is matched with K queries.
_base_ = 'group_cond_detr_r50_joint_attn_12e.py'
model = dict(
    train_cfg=dict(assigner=dict(type='OneToManyHungarianAssigner')),
    test_cfg=dict(query_group='all'))
