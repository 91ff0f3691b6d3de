# The official recipe, with the sampling offsets of deformable attention at a tenth.
_base_ = 'detr_12e.py'
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'sampling_offsets': dict(lr_mult=0.1)}))
