"""Strong augmentation in front of the resize of every recipe."""
import random
from pathlib import Path

import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny import CLASSES, write_tiny_coco

CONFIGS = Path(__file__).parents[2] / 'configs'
LINES = """
light = _base_.train_pipeline
train_pipeline = [*light[:2], *_base_.strong_augmentation, *light[2:]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
custom_hooks = [dict(type='PipelineSwitchHook', switch_epoch=9, switch_pipeline=light)]
"""


@pytest.mark.parametrize('base', [
    'demo/group_cond_detr_demo', 'group_cond_detr_mbv2_30e', 'group_cond_detr_r50_12e'])
def test_images_have_more_objects_and_every_box_is_a_box(tmp_path, base):
    init_default_scope('mmdet')
    bases = [str(CONFIGS / f'{name}.py') for name in (base, '_base_/strong_augmentation')]
    (tmp_path / 'mine.py').write_text(f'_base_ = {bases}{LINES}')
    cfg = Config.fromfile(tmp_path / 'mine.py')
    root = write_tiny_coco(tmp_path / 'coco')
    light, strong = (DATASETS.build(dict(
        type='CheckedCocoDataset', data_root=str(root), ann_file='train.json', pipeline=pipeline,
        data_prefix=dict(img='images/'), metainfo=dict(classes=CLASSES), filter_cfg=None))
        for pipeline in (cfg.custom_hooks[0].switch_pipeline, cfg.train_pipeline))
    random.seed(0)
    np.random.seed(0)
    counts = []
    for dataset in (light, strong):
        samples = [dataset[i]['data_samples'] for _ in range(3) for i in range(len(dataset))]
        counts.append(sum(len(x.gt_instances) for x in samples))
    for sample in samples:
        boxes, (height, width) = sample.gt_instances.bboxes.tensor, sample.img_shape
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all() and (boxes[:, 2:] - boxes[:, :2] > 0).all()
        assert len(boxes) == len(sample.gt_instances.labels)
    assert counts[1] > counts[0]
