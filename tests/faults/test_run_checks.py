"""Model and data that do not fit each other are refused before the first step."""
import pytest
from running import run_tool
from tiny import change_coco, tiny_config

from groupdetr_mmdet.errors import warn_once
from groupdetr_mmdet.training.runner import check_data


@pytest.fixture
def cfg(tiny_coco):
    warn_once.cache_clear()
    return tiny_config(tiny_coco)


def train(cfg, tmp_path, capfd):
    """Status and last line of a training."""
    cfg.dump(tmp_path / 'mine.py')
    status = run_tool('train', tmp_path / 'mine.py', '--work-dir', tmp_path / 'work')
    out = capfd.readouterr()
    assert 'Epoch(train)' not in out.err + out.out
    return status, out.err.splitlines()[-1]


def num_classes_of_the_model(cfg, tiny_coco):
    cfg.model.bbox_head.num_classes = 4


def classes_of_val(cfg, tiny_coco):
    cfg.val_dataloader.dataset.metainfo.classes = ('red', 'green')


def a_val_image_is_cut(cfg, tiny_coco):
    path = tiny_coco / 'images/val_2.jpg'
    path.write_bytes(path.read_bytes()[:-30])


def a_val_image_is_missing(cfg, tiny_coco):
    (tiny_coco / 'images/val_2.jpg').unlink()


def a_val_box_is_broken(cfg, tiny_coco):
    change_coco(tiny_coco, lambda coco: coco['annotations'][1].update(
        bbox=[1, 1, float('inf'), 5]), 'val')


def the_metric_has_other_annotations(cfg, tiny_coco):
    change_coco(tiny_coco, lambda coco: [
        entry.update({key: entry[key] + 100}) for part, key in
        (('images', 'id'), ('annotations', 'image_id')) for entry in coco[part]] and None)
    cfg.val_evaluator.ann_file = f'{tiny_coco}/train.json'


def the_metric_has_other_images_of_the_same_ids(cfg, tiny_coco):
    cfg.val_evaluator.ann_file = f'{tiny_coco}/train.json'


FAULTS = {
    num_classes_of_the_model: 'model.bbox_head.num_classes=4',
    classes_of_val: 'val_dataloader',
    a_val_image_is_cut: 'val_2.jpg',
    a_val_image_is_missing: '1 of 4 images',
    a_val_box_is_broken: 'id 2',
    the_metric_has_other_annotations: 'val_evaluator.ann_file',
    the_metric_has_other_images_of_the_same_ids: 'val_evaluator.ann_file',
}


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.__name__)
def test_what_does_not_fit_is_refused_before_the_first_step(cfg, tiny_coco, tmp_path, capfd,
                                                            fault):
    fault(cfg, tiny_coco)
    status, last = train(cfg, tmp_path, capfd)
    assert status == 2 and last.startswith('error: ') and FAULTS[fault] in last


def test_stock_classes_of_a_config_are_checked_too(cfg):
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset)
    check_data(cfg)
    check_data(cfg)
    train_data, val_data = cfg.train_dataloader.dataset.dataset, cfg.val_dataloader.dataset
    assert train_data.type == val_data.type == 'CheckedCocoDataset'
    assert cfg.val_evaluator.collect_device == 'gpu'  # no folder .dist_test
    assert train_data.pipeline[0].type == 'CheckedLoadImageFromFile'
    assert val_data.pipeline[0].type == 'LoadImageFromFile'
    assert [hook.type for hook in cfg.custom_hooks] == ['RunCheckHook']


def test_more_objects_than_queries_are_announced(cfg, tiny_coco, tmp_path, capfd):
    cfg.model.num_queries = 2
    cfg.train_cfg.max_epochs = 1
    config = tmp_path / 'few_queries.py'  # trainings of one name in one second share their logger
    cfg.dump(config)
    assert run_tool('train', config, '--work-dir', tmp_path / 'work') == 0
    out = capfd.readouterr()
    assert 'has 3 objects, more than model.num_queries=2' in out.err + out.out
