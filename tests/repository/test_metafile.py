"""What MIM reads about the configs is true of them."""
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from mmengine.config import Config

from groupdetr_mmdet.config import shipped_configs

ROOT = Path(__file__).parents[2]
MIM = ROOT / 'groupdetr_mmdet/.mim'
INDEX = yaml.safe_load((MIM / 'model-index.yml').read_text())
META = [yaml.safe_load((MIM / path).read_text()) for path in INDEX['Import']]
MODELS = {model['Name']: model for meta in META for model in meta['Models']}
COLLECTIONS = {entry['Name']: entry for meta in META for entry in meta['Collections']}


def test_every_config_has_an_entry():
    configs = {file.stem: file for file in shipped_configs().values()}
    assert {name: MIM / model['Config'] for name, model in MODELS.items()} == configs
    assert len(configs) == len(shipped_configs()), 'a file name says which config it is'


def test_every_collection_is_used_and_has_its_readme():
    assert {model['In Collection'] for model in MODELS.values()} == set(COLLECTIONS)
    assert all((ROOT / entry['README']).is_file() for entry in COLLECTIONS.values())


@pytest.mark.parametrize('name', [name for name, x in MODELS.items() if 'Epochs' in x['Metadata']])
def test_the_epochs_are_those_of_the_config(name):
    config = Config.fromfile(MIM / MODELS[name]['Config'], import_custom_modules=False)
    assert config.train_cfg.max_epochs == MODELS[name]['Metadata']['Epochs']


def test_the_wheel_brings_what_mim_reads(tmp_path):
    others = shutil.ignore_patterns('.*env*', '.git', 'data', 'work_dirs', 'build', '*.egg-info')
    source = shutil.copytree(ROOT, tmp_path / 'source', symlinks=True, ignore=others)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
                    '--no-build-isolation', source, '--wheel-dir', tmp_path], check=True)
    wheel, = tmp_path.glob('*.whl')
    files = {name.partition('groupdetr_mmdet/.mim/')[2] for name in ZipFile(wheel).namelist()}
    assert {'model-index.yml', 'configs/group_detr/metafile.yml', 'tools/train.py',
            'tools/test.py', *(f'configs/group_detr/{path.relative_to(ROOT / "configs")}'
                               for path in ROOT.glob('configs/**/*.py'))} <= files
    assert not any('benchmark' in name for name in files), 'what they import is not in the wheel'
