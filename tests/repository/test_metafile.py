"""What MIM reads about the configs is true of them."""
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.config import Config

from groupdetr_mmdet.config import read_config, shipped_configs

ROOT = Path(__file__).parents[2]
MIM = ROOT / 'groupdetr_mmdet/.mim'
INDEX = yaml.safe_load((MIM / 'model-index.yml').read_text())
META = [yaml.safe_load((MIM / path).read_text()) for path in INDEX['Import']]
MODELS = {model['Name']: model for meta in META for model in meta['Models']}
COLLECTIONS = {entry['Name']: entry for meta in META for entry in meta['Collections']}


def test_every_config_has_an_entry():
    configs = {file.stem: file for file in shipped_configs().values()}
    assert {name: MIM / model['Config'] for name, model in MODELS.items()} == configs
    assert len(configs) == len(shipped_configs()), 'file names identify configs'


def test_every_collection_is_used_and_has_its_readme():
    assert {model['In Collection'] for model in MODELS.values()} == set(COLLECTIONS)
    assert all((ROOT / entry['README']).is_file() for entry in COLLECTIONS.values())


@pytest.mark.parametrize('name', [name for name, x in MODELS.items() if 'Epochs' in x['Metadata']])
def test_the_epochs_are_those_of_the_config(name):
    config = Config.fromfile(MIM / MODELS[name]['Config'], import_custom_modules=False)
    assert config.train_cfg.max_epochs == MODELS[name]['Metadata']['Epochs']


BY_NAME = """
import sys
import groupdetr_mmdet
from mmdet.apis import DetInferencer
model, scope, weights, photo = sys.argv[1:]
found = DetInferencer(model, weights, 'cpu', scope=scope)(
    photo, out_dir='', no_save_vis=True)['predictions'][0]
print(found['scores'])
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The package as a wheel installs it."""
    folder = tmp_path_factory.mktemp('wheel')
    ignored = shutil.ignore_patterns('.*env*', '.git', 'data', 'work_dirs', 'build', '*.egg-info')
    source = shutil.copytree(ROOT, folder / 'source', symlinks=True, ignore=ignored)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
                    '--no-build-isolation', source, '--wheel-dir', folder], check=True)
    file, = folder.glob('*.whl')
    ZipFile(file).extractall(folder / 'installed')
    return folder / 'installed'


def test_the_wheel_brings_what_mim_reads(wheel):
    mim = wheel / 'groupdetr_mmdet/.mim'
    files = {path.relative_to(mim).as_posix() for path in mim.rglob('*.*')}
    assert {'model-index.yml', 'configs/group_detr/metafile.yml', 'tools/train.py',
            'tools/test.py', *(f'configs/group_detr/{path.relative_to(ROOT / "configs")}'
                               for path in ROOT.glob('configs/**/*.py'))} <= files
    assert not any('benchmark' in name for name in files), 'what they import is not in the wheel'


@pytest.mark.slow
def test_mmdets_inferencer_finds_a_model_by_its_name(wheel, tmp_path):
    cfg = read_config('group_cond_detr_demo')
    with MMDET_MODELS.switch_scope_and_registry('mmdet') as registry:
        model = registry.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(),
                    meta=dict(dataset_meta=dict(classes=list('abcd')))), tmp_path / 'weights.pth')
    cv2.imwrite(str(tmp_path / 'photo.png'), np.full((64, 80, 3), 99, np.uint8))
    scores = [subprocess.run(
        [sys.executable, '-c', BY_NAME, model, scope, 'weights.pth', 'photo.png'], cwd=tmp_path,
        check=True, env=dict(os.environ, PYTHONPATH=str(wheel)), capture_output=True,
        text=True).stdout.splitlines()[-1]
        for model, scope in (('group_cond_detr_demo', 'groupdetr_mmdet'),
                             (ROOT / 'configs/demo/group_cond_detr_demo.py', 'mmdet'))]
    assert scores[0] == scores[1]
