# Deformable DETR's recipe: AdamW at 2e-4, 16 GPUs x 2 images, sampling offsets and reference
# points at a tenth.
_base_ = 'detr_12e.py'
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(
        custom_keys={
            'sampling_offsets': dict(lr_mult=0.1),
            'reference_points': dict(lr_mult=0.1)
        }))
auto_scale_lr = dict(base_batch_size=32)
