"""Valid configs: each is taken, as stock mmdet takes it."""
import argparse
from pathlib import Path
from types import SimpleNamespace

import mmdet
import mmengine.config.config
import pytest
import torch
from mmdet.evaluation import LVISMetric
from mmdet.registry import MODELS
from mmengine.config import Config
from running import run_tool
from tiny import CLASSES, tiny_config, write_tiny_coco

from groupdetr_mmdet.commands import train
from groupdetr_mmdet.config import read_config
from groupdetr_mmdet.data.run_checks import check_compared
from groupdetr_mmdet.training.runner import check_data, make_resumable

CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
FOLDERS = sorted(x for x in CONFIGS.iterdir() if x.is_dir() and x.name != '_base_')


def refused(files):
    """Those that mmengine reads and a command of this package does not, with the reason."""
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    found = {}
    for file in files:
        try:
            cfg = read_config(str(file))
            if cfg.get('train_cfg'):
                cfg = train.load_config(parser.parse_args([str(file)]))
                make_resumable(cfg)
            check_data(cfg)
        except Exception as error:
            try:
                Config.fromfile(file)
            except Exception:  # a base of a package that is not installed
                continue
            found[file.name] = error
    return found


@pytest.mark.parametrize('folder', FOLDERS, ids=lambda folder: folder.name)
def test_a_config_of_each_folder_of_mmdet_is_taken(folder):
    files = sorted(folder.rglob('*.py'))
    assert not refused(files[:1])


@pytest.mark.long
def test_every_config_of_mmdet_is_taken():
    files = [x for folder in FOLDERS for x in sorted(folder.rglob('*.py'))]
    assert len(files) > 700 and not refused(files)


PURE = """
from mmengine.config import read_base

with read_base():
    from .tiny import *

import torch.nn as nn
from mmcv.transforms import LoadImageFromFile, RandomChoice, RandomFlip
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs
from mmdet.engine.hooks import NumClassCheckHook
from mmdet.evaluation import CocoMetric
from mmengine.hooks import CheckpointHook
from mmengine.runner import EpochBasedTrainLoop
from torch.optim import AdamW

from groupdetr_mmdet import GroupConditionalDETR, GroupHungarianAssigner

model.update(dict(type=GroupConditionalDETR))
model['neck'].update(dict(act_cfg=dict(type=nn.ReLU)))
model['train_cfg']['assigner'].update(dict(type=GroupHungarianAssigner))
train_dataloader['dataset'].update(dict(type=CocoDataset, pipeline=[
    dict(type=LoadImageFromFile), dict(type=LoadAnnotations, with_bbox=True),
    dict(type=RandomChoice, transforms=[[dict(type=RandomFlip, prob=.5)], []]),
    dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))]))
val_dataloader['dataset'].update(dict(type=CocoDataset))
val_evaluator.update(dict(type=CocoMetric))
default_hooks['checkpoint'].update(dict(type=CheckpointHook))
custom_hooks = [dict(type=NumClassCheckHook)]
train_cfg.update(dict(type=EpochBasedTrainLoop))
optim_wrapper['optimizer'].update(dict(type=AdamW))
"""


def test_a_config_in_pure_python_trains_and_tests(tiny_config_file, tmp_path, monkeypatch, capfd):
    from yapf.yapflib.yapf_api import FormatCode  # mmengine's own layout parses what it dumps
    monkeypatch.setattr(mmengine.config.config, 'FormatCode', FormatCode, raising=False)
    (tmp_path / 'pure.py').write_text(PURE)
    for command in (['--dry-run'], ['--work-dir', tmp_path / 'work', '--epochs', 1]):
        assert run_tool('train', tmp_path / 'pure.py', *command) == 0
    assert run_tool('test', tmp_path / 'pure.py', tmp_path / 'work/epoch_1.pth', '--work-dir',
                    tmp_path / 'tested') == 0
    cfg = read_config(str(tmp_path / 'work/pure.py'))
    assert cfg.train_dataloader.dataset.type == 'mmdet.datasets.CocoDataset', 'as it was given'
    check_data(cfg)
    assert cfg.train_dataloader.dataset.type == 'CheckedCocoDataset'


def two_validation_sets(cfg):
    dataset, metric = cfg.val_dataloader.dataset, cfg.val_evaluator
    cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[dataset, dict(
        dataset, ann_file='train.json')])
    cfg.val_evaluator = dict(type='MultiDatasetsEvaluator', dataset_prefixes=['a', 'b'], metrics=[
        metric, dict(metric, ann_file=metric.ann_file.replace('val.json', 'train.json'))])


def classes_as_list_and_tuple(cfg):
    cfg.train_dataloader.dataset.metainfo.classes = list(CLASSES)
    cfg.val_dataloader.dataset.metainfo.classes = tuple(CLASSES)


def semi_supervised(cfg):
    """``SemiBaseDetector`` around a DETR, of which half of the images have no labels."""
    scale = dict(type='Resize', scale=(64, 64), keep_ratio=True)
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'homography_matrix')
    pack = dict(type='PackDetInputs', meta_keys=keys)
    branches = ['sup', 'unsup_teacher', 'unsup_student']
    load = cfg.train_dataloader.dataset.pipeline[:2]
    with_labels = [*load, scale, dict(type='MultiBranch', branch_field=branches, sup=pack)]
    without = [load[0], dict(type='LoadEmptyAnnotations'), dict(
        type='MultiBranch', branch_field=branches, unsup_teacher=[scale, pack],
        unsup_student=[scale, pack])]
    dataset = cfg.train_dataloader.pop('dataset')
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[
        dict(dataset, pipeline=with_labels), dict(dataset, pipeline=without)])
    cfg.train_dataloader.sampler = dict(
        type='GroupMultiSourceSampler', batch_size=2, source_ratio=[1, 1])
    detector = cfg.pop('model')
    cfg.model = dict(
        type='SemiBaseDetector', detector=detector,
        data_preprocessor=dict(type='MultiBranchDataPreprocessor',
                               data_preprocessor=detector.data_preprocessor),
        semi_train_cfg=dict(freeze_teacher=True, sup_weight=1., unsup_weight=1.,
                            cls_pseudo_thr=.01, min_pseudo_bbox_wh=(1, 1)),
        semi_test_cfg=dict(predict_on='teacher'))
    # the sampler never ends
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.param_scheduler[0].by_epoch = False
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=2)


def names_with_scopes(cfg):
    cfg.train_cfg.type = 'mmengine.EpochBasedTrainLoop'
    cfg.default_hooks.checkpoint.type = 'mmengine.CheckpointHook'
    cfg.optim_wrapper.type = 'mmengine.OptimWrapper'


def numbers_of_other_kinds(cfg):
    cfg.train_cfg.val_interval = 1.
    cfg.model.neck.out_channels = 32
    cfg.val_dataloader.dataset.pipeline[1] = dict(type='Resize', scale_factor=1.7)


@pytest.mark.parametrize('change', [two_validation_sets, classes_as_list_and_tuple,
                                    semi_supervised, names_with_scopes, numbers_of_other_kinds])
def test_a_valid_config_trains(tiny_coco, tmp_path, change):
    cfg = tiny_config(tiny_coco)
    cfg.train_cfg.max_epochs = 1
    change(cfg)
    cfg.dump(tmp_path / 'valid.py')
    assert run_tool('train', tmp_path / 'valid.py', '--work-dir', tmp_path / 'work') == 0
    make_resumable(cfg)
    assert cfg.default_hooks.checkpoint.type == 'AtomicCheckpointHook'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trained')
    cfg = tiny_config(write_tiny_coco(folder / 'coco'))
    cfg.dump(folder / 'tiny.py')
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'x.pth')
    return folder


@pytest.mark.parametrize('options', ['model.train_cfg=None', 'optim_wrapper.type=AmpOptimWrapper'])
def test_what_only_a_training_needs_is_not_asked_for_elsewhere(trained, tmp_path, options):
    common = (trained / 'tiny.py', trained / 'x.pth')
    end = ('--cfg-options', options)
    assert run_tool('test', *common, '--work-dir', tmp_path / 'tested', *end) == 0
    assert run_tool('predict', trained / 'coco/images', *common, '--out', tmp_path / 'found',
                    *end) == 0


def test_a_config_without_test_data_converts_and_else_names_it(trained, tmp_path, last_error):
    cfg = Config.fromfile(trained / 'tiny.py')
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.dump(tmp_path / 'untested.py')
    files, out = (tmp_path / 'untested.py', trained / 'x.pth'), tmp_path / 'out'
    assert run_tool('convert_checkpoint', *files, tmp_path / 'out.pth') == 0
    for args in (('predict', trained / 'coco/images', *files, '--out', out),
                 ('export_onnx', *files, tmp_path / 'out.onnx'), ('draw_queries', *files),
                 ('convert_checkpoint', *files, out, '--to', 'transformers')):
        assert 'untested.py has no test_dataloader' in last_error(*args)


def test_lvis_reads_its_annotations_by_itself():
    metric = LVISMetric.__new__(LVISMetric)  # whose package is not installed
    check_compared(metric, SimpleNamespace(), 'val')
