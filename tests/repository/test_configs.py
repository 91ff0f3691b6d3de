"""Shipped configs are found by name, and inherited from anywhere."""
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.config import find_config, read_config

ROOT = Path(__file__).parents[2]
ADDRESS = 'groupdetr_mmdet::group_detr/demo/group_cond_detr_demo.py'
@pytest.mark.parametrize('name', ['demo/cond_detr_demo', 'cond_detr_demo', 'cond_detr_demo.py'])
def test_a_name_is_a_shipped_config(name):
    assert Path(find_config(name)).samefile(ROOT / 'configs/demo/cond_detr_demo.py')


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('cond_detr_demo').write_text('')
    assert find_config('cond_detr_demo') == 'cond_detr_demo'


@pytest.mark.parametrize(('wrong', 'near'), [
    ('group_con_detr_r50_12e', 'group_cond_detr_r50_12e'),
    ('configs/group_cond_detr_r50_naive_12.py', 'ablation/group_cond_detr_r50_naive_12e'),
    ('yolo.py', ''), ('_base_/default_runtime', '')])
def test_a_wrong_name_gets_the_nearest(wrong, near):
    with pytest.raises(ConfigError, match=f'CONFIG: {wrong} does not exist; ') as error:
        find_config(wrong)
    assert str(error.value).endswith(f'nearest name is {near}.' if near else 'shipped config.')


def test_an_inherited_config_is_the_shipped_one(tmp_path):
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = '{ADDRESS}'\n")
    mine, shipped = Config.fromfile(mine), read_config('group_cond_detr_demo')
    assert without_scope(mine.to_dict()) == without_scope(shipped.to_dict())
    assert without_scope(get_config(ADDRESS).to_dict()) == without_scope(shipped.to_dict())


def without_scope(config):
    if isinstance(config, dict):
        return {key: without_scope(x) for key, x in config.items() if key != '_scope_'}
    return [without_scope(x) for x in config] if isinstance(config, list) else config
