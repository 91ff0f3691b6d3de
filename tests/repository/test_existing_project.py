"""The config of ``docs/existing-project.md`` runs with the tools that mmdet itself installs."""
import re
import runpy
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest

from groupdetr_mmdet.data.shapes import make_shapes

ROOT = Path(__file__).parents[2]
TOOLS = Path(mmdet.__file__).parent / '.mim/tools'
TINY = """
_base_ = 'mine.py'
model = dict(
    num_queries=20,
    backbone=dict(depth=18, init_cfg=None),
    neck=dict(in_channels=[128, 256, 512]),
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=1),
    bbox_head=dict(num_classes=4),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=4)))
metainfo = dict(classes=('circle', 'square', 'triangle', 'star'))
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
shapes = dict(data_root='shapes/', metainfo=metainfo, pipeline=pipeline)
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    dataset=dict(ann_file='train.json', data_prefix=dict(img='train/'), **shapes), **loader)
val_dataloader = dict(
    dataset=dict(ann_file='val.json', data_prefix=dict(img='val/'), **shapes), **loader)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='shapes/val.json')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
"""


@pytest.mark.slow
def test_mmdets_own_tools_train_and_test_the_config_of_the_page(tmp_path, monkeypatch, capfd):
    page = (ROOT / 'docs/existing-project.md').read_text()
    (tmp_path / 'mine.py').write_text(re.search(r'```python\n(.*?)```', page, re.DOTALL)[1])
    (tmp_path / 'tiny.py').write_text(TINY)
    make_shapes(tmp_path / 'shapes', num_train=2, num_val=1, size=64)
    monkeypatch.chdir(tmp_path)
    train = subprocess.run([sys.executable, TOOLS / 'train.py', 'tiny.py'], text=True,
                           capture_output=True)
    assert train.returncode == 0 and 'loss_cls' in train.stdout, train.stderr
    # mmdet's test.py imports compiled operators before it reads the config; here they are there.
    monkeypatch.setattr(sys, 'argv', ['test.py', 'tiny.py', 'work_dirs/tiny/epoch_1.pth'])
    runpy.run_path(str(TOOLS / 'test.py'), run_name='__main__')
    assert re.search(r'coco/bbox_mAP: \d', capfd.readouterr().out)
