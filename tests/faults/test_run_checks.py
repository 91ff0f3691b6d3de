"""Model and data that do not fit each other are refused before the first step."""
import pytest
from layout_builders import write_layout
from mmdet.datasets import VOCDataset
from mmdet.registry import DATASETS
from running import run_tool
from tiny import change_coco, tiny_config

from groupdetr_mmdet.commands.errors import setup_error
from groupdetr_mmdet.data.run_checks import check_dataset
from groupdetr_mmdet.errors import warn_once
from groupdetr_mmdet.training.runner import check_data


@pytest.fixture
def cfg(tiny_coco):
    warn_once.cache_clear()
    return tiny_config(tiny_coco)


def renumber(coco):
    for part, key in (('images', 'id'), ('annotations', 'image_id')):
        for entry in coco[part]:
            entry[key] += 100


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


FAULTS = {  # change of the config or its data set, and words of the error
    'num_classes of the model': (lambda cfg, root: cfg.model.bbox_head.update(num_classes=4),
                                 'model.bbox_head.num_classes=4'),
    'classes of val': (lambda cfg, root: cfg.val_dataloader.dataset.metainfo.update(
        classes=('red', 'green')), 'val_dataloader'),
    'a val image is cut': (lambda cfg, root: cut(root / 'images/val_2.jpg'), 'val_2.jpg'),
    'a val image is missing': (lambda cfg, root: (root / 'images/val_2.jpg').unlink(),
                               '1 of 4 images'),
    'a val box is broken': (lambda cfg, root: change_coco(
        root, lambda coco: coco['annotations'][1].update(bbox=[1, 1, float('inf'), 5]), 'val'),
        'id 2'),
    'the metric has other annotations': (lambda cfg, root: change_coco(root, renumber) or
                                         cfg.val_evaluator.update(ann_file=f'{root}/train.json'),
                                         'val_evaluator.ann_file'),
    'the metric has other images of the same ids': (
        lambda cfg, root: cfg.val_evaluator.update(ann_file=f'{root}/train.json'),
        'val_evaluator.ann_file'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_what_does_not_fit_is_refused_before_the_first_step(cfg, tiny_coco, tmp_path, last_error,
                                                            name):
    change, words = FAULTS[name]
    change(cfg, tiny_coco)
    cfg.dump(tmp_path / 'mine.py')
    assert words in last_error('train', tmp_path / 'mine.py', '--work-dir', tmp_path / 'work')


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
    cfg.dump(tmp_path / 'mine.py')
    assert run_tool('train', tmp_path / 'mine.py', '--work-dir', tmp_path / 'work') == 0
    out = capfd.readouterr()
    assert 'has 3 objects, more than model.num_queries=2' in out.err + out.out


def test_labels_of_other_classes_are_no_objects(tiny_coco, tmp_path, warnings_logged):
    """``VOCDataset`` leaves them out in silence, and then the images."""
    root = write_layout('voc', tiny_coco, tmp_path / 'voc')
    settings = dict(data_root=str(root), data_prefix=dict(sub_data_root=''),
                    ann_file='ImageSets/Main/train.txt', pipeline=[])
    own = VOCDataset(metainfo=dict(classes=('red', )), **settings)
    check_dataset(own, None, 'train')
    assert warnings_logged() == []
    check_dataset(VOCDataset(**settings), None, 'train')
    assert "no object of metainfo.classes=('aeroplane'" in warnings_logged()[0]
    with pytest.raises(ValueError) as error:
        DATASETS.build(dict(type='VOCDataset', filter_cfg=dict(filter_empty_gt=True), **settings))
    line = setup_error(error.value)
    assert 'no image is left' in line and 'aeroplane' in line
