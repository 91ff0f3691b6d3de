"""A detector that left as mmdet's own runs where this package was never imported."""
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import build, perturbed
from family_builders import family_config
from mask_builders import mask2former_config
from mmdet.apis import DetInferencer
from mmengine.config import Config, ConfigDict
from running import run_tool
from tiny import CLASSES, tiny_config, write_tiny_coco

GROUP = 1
FAMILIES = ('conditional', 'dab', 'deformable', 'refine', 'two_stage', 'dino', 'mask2former')

ALONE = Path(__file__).with_name('mmdet_alone.py')


def model_config(family: str) -> ConfigDict:
    """Three groups of 20 queries, with settings that mmdet lacks."""
    if family == 'mask2former':
        model = mask2former_config(3, num_queries=20, num_things=len(CLASSES))
        model.test_cfg.update(query_group=GROUP, max_per_image=100)
        return model
    model = ConfigDict(family_config(family, 3, num_queries=20, width=256))
    model.bbox_head.num_classes = len(CLASSES)
    model.test_cfg = dict(query_group=GROUP, max_per_img=100)
    model.decoder.num_cp = 1
    if family == 'refine':
        model.bbox_head.loss_cls = dict(type='IABCELoss')
    return model


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Configs and weights of ours (``NAME_ours``) and of mmdet (``NAME``), and data."""
    folder = tmp_path_factory.mktemp('leaving')
    data = write_tiny_coco(folder / 'coco')
    for family in FAMILIES:
        config = tiny_config(data)
        preprocessor = config.model.data_preprocessor
        config.model = dict(model_config(family), data_preprocessor=preprocessor)
        for part in (config.model, config.model.backbone, config.test_dataloader,
                     config.test_evaluator):  # as from a base groupdetr_mmdet::NAME
            part._scope_ = 'groupdetr_mmdet'
        config.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='nowhere.pth')
        config.dump(folder / f'{family}_ours.py')
        config.model.backbone.init_cfg = None
        model = perturbed(build({key: value for key, value in config.model.items()
                                 if key != 'data_preprocessor'}))
        meta = dict(dataset_meta=dict(classes=CLASSES))
        torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / f'{family}_ours.pth')
        assert run_tool('convert_checkpoint', folder / f'{family}_ours.py',
                        folder / f'{family}_ours.pth', folder / f'{family}.pth', '--to', 'mmdet',
                        '--query-group', GROUP) == 0
    return folder


@pytest.fixture(scope='module')
def found(folder) -> dict:
    """What mmdet alone finds."""
    done = subprocess.run([sys.executable, str(ALONE), str(folder), *FAMILIES], cwd=folder,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(re.search(r'^FOUND (.*)$', done.stdout, re.M)[1])


@pytest.mark.parametrize('family', FAMILIES)
def test_mmdet_alone_finds_the_same(family, folder, found):
    config = Config.fromfile(folder / f'{family}_ours.py')
    config.model.backbone.init_cfg = None
    ours = DetInferencer(config, str(folder / f'{family}_ours.pth'), show_progress=False)(
        [str(folder / 'coco/images/val_0.jpg')])['predictions'][0]
    theirs = found[family]
    assert theirs['labels'] == ours['labels'] and len(theirs['labels']) == 3 * 20
    np.testing.assert_allclose(theirs['scores'], ours['scores'], atol=1e-5)
    np.testing.assert_allclose(theirs['bboxes'], ours['bboxes'], atol=1e-2)
    assert theirs['classes'] == list(CLASSES)
    assert 'coco/bbox_mAP' in theirs['metrics']


@pytest.mark.parametrize('family', FAMILIES)
def test_the_config_names_nothing_of_ours(family, folder):
    text = (folder / f'{family}.py').read_text()
    assert 'roup' not in text.replace('num_groups', '').replace('group_cfg', '')
    for word in ('Checked', 'init_cfg', 'num_cp', 'train_cfg', 'custom_imports', 'nowhere'):
        assert word not in text, word
    model = Config.fromfile(folder / f'{family}.py').model
    key = 'max_per_image' if family == 'mask2former' else 'max_per_img'
    assert model.test_cfg[key] == 3 * 20
    assert model.get('panoptic_head', model).num_queries == 20
