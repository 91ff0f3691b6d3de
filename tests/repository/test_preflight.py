"""A path that is not there ends in one sentence with the path, the config key and the fix."""
from pathlib import Path
from typing import Optional

import pytest
from mmengine.config import Config
from tiny import tiny_config

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.preflight import check_paths


def complaint(*args) -> Optional[str]:
    """Return what ``check_paths`` finds wrong, or None."""
    try:
        check_paths(*args)
    except ConfigError as error:
        return str(error)
    return None


def test_config_with_all_its_files_passes(tiny_coco: Path):
    assert complaint(tiny_config(tiny_coco)) is None


def test_missing_annotation_file(tiny_coco: Path):
    (tiny_coco / 'train.json').unlink()
    with pytest.raises(ConfigError) as error:
        check_paths(tiny_config(tiny_coco))
    assert str(error.value) == (
        f'train_dataloader.dataset.ann_file: {tiny_coco}/train.json does not exist; put it there '
        'or correct train_dataloader.dataset.data_root or train_dataloader.dataset.ann_file.')


@pytest.mark.parametrize('wrap, key', [
    (lambda x: x, 'dataset'),
    (lambda x: dict(type='RepeatDataset', times=2, dataset=x), 'dataset.dataset'),
    (lambda x: dict(type='ConcatDataset', datasets=[x]), r'dataset.datasets\[0\]'),
])
def test_missing_image_directory_inside_wrappers(tiny_coco: Path, wrap, key: str):
    cfg = tiny_config(tiny_coco)
    cfg.train_dataloader.dataset.data_prefix.img = 'pictures/'
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset)
    with pytest.raises(ConfigError, match=rf'train_dataloader.{key}.data_prefix.img: .*pictures'):
        check_paths(cfg)


@pytest.mark.parametrize('key', [
    'val_evaluator.ann_file',
    'load_from',
    'model.backbone.init_cfg.checkpoint',
])
def test_other_missing_files(tiny_coco: Path, key: str):
    cfg = tiny_config(tiny_coco)
    cfg.merge_from_dict({key: 'nowhere/file', 'model.backbone.init_cfg.type': 'Pretrained'})
    with pytest.raises(ConfigError, match=f'^{key}: nowhere/file does not exist; .*correct {key}'):
        check_paths(cfg)


@pytest.mark.parametrize('mode', ['train', 'val', 'test'])
def test_only_what_runs_is_checked(tiny_coco: Path, mode: str):
    cfg = tiny_config(tiny_coco)
    cfg[f'{mode}_dataloader'].dataset.ann_file = 'nowhere.json'
    others = sorted({'train', 'val', 'test'} - {mode})
    assert complaint(cfg, others) is None
    assert complaint(cfg, [mode]).startswith(f'{mode}_dataloader.dataset.ann_file: ')


def test_addresses_are_no_local_paths(tiny_coco: Path):
    cfg = tiny_config(tiny_coco)
    cfg.load_from = 'https://example.org/model.pth'
    cfg.train_dataloader.dataset.update(
        data_root='bucket/', backend_args=dict(backend='petrel'))
    assert complaint(cfg) is None


def test_config_without_evaluation_passes(tiny_coco: Path):
    cfg = tiny_config(tiny_coco)
    for name in ('val_dataloader', 'val_evaluator', 'val_cfg'):
        cfg[name] = None
    assert complaint(cfg) is None


def test_several_evaluators(tiny_coco: Path):
    cfg = tiny_config(tiny_coco)
    cfg.val_evaluator = [cfg.val_evaluator, Config(dict(ann_file='nowhere.json'))._cfg_dict]
    with pytest.raises(ConfigError, match='val_evaluator.ann_file: nowhere.json'):
        check_paths(cfg)
