# Blood cells on a CPU: 205 images of 640 x 480 at half size, MobileNetV2 at stride 16. Cells have
# no upright position, so images are flipped in all directions.
_base_ = 'group_cond_detr_mbv2_30e.py'
data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))
scale = (320, 240)
model = dict(num_queries=40, bbox_head=dict(num_classes=3))

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = scale  # of Resize
train_pipeline[3].update(  # RandomFlip
    prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal'])
dataset = dict(data_root=data_root, data_prefix=dict(img='images/'), metainfo=metainfo)
train_dataloader = dict(
    num_workers=1, dataset=dict(ann_file='train.json', pipeline=train_pipeline, **dataset))
val_dataloader = dict(
    num_workers=1, dataset=dict(ann_file='val.json', pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator

train_cfg = dict(val_interval=2)
randomness = dict(seed=0)
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=1, save_best='coco/bbox_mAP'))
