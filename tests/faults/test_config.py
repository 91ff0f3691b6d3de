"""Errors in a config: a change of a sound config, and an error in one line with the key."""
import pytest
from family_builders import FAMILIES, family_config
from mask_builders import mask2former_config
from mmdet.registry import MODELS
from mmengine.config import Config
from running import run_tool
from tiny import tiny_config

from groupdetr_mmdet.config import merge_options
from groupdetr_mmdet.errors import ConfigError, warn_once

LINES = {  # --cfg-options of a training: words of the line, the key or the part first
    'model.num_query_group=3': ('model: ', 'nearest name is num_query_groups'),
    'model.num_queries=abc': ('model.num_queries', "'abc'"),
    'model.test_cfg.query_group=77': ('model.test_cfg.query_group', '77'),
    'model.train_cfg.assigner=None': ('model.train_cfg.assigner', 'GroupHungarianAssigner'),
    'model.bbox_head.type=GroupConditionalDETRHaed': (
        'model.bbox_head: ', 'nearest name is GroupConditionalDETRHead'),
    'model.bbox_head.type=DETRHead': ('model.bbox_head.type=DETRHead', 'ConditionalDETRHead'),
    'model.bbox_head.loss_cls.gama=2': ('model.bbox_head.loss_cls: ', 'nearest name is gamma'),
    'model.decoder.num_layer=3': ('model: ', 'nearest name is num_layers'),
    'model.backbone.depth=abc': ('model.backbone: ', 'abc'),
    'model.neck.in_channels=[7]': ('model.neck: ', '[32, 7, 1, 1]'),  # found by the first step
    'train_dataloader.batchsize=2': ('train_dataloader: ', 'nearest name is batch_size'),
    'train_dataloader.dataset.anno_file=x': (
        'train_dataloader.dataset: ', 'nearest name is ann_file'),
    'val_dataloader.dataset.ann_file=no.json': ('val_dataloader.dataset: ', 'no.json'),
    'train_dataloader.dataset.pipeline.1.with_mask=True': ('train.json', 'segmentation'),
    'val_evaluator.type=CocoMetrics': ('val_evaluator: ', 'nearest name is CocoMetric'),
    'optim_wraper.optimizer.lr=1': ('optim_wraper.optimizer.lr', 'nearest name is optim_wrapper'),
    'param_scheduler.0.milestone=3': ('param_scheduler[0]: ', 'nearest name is milestones'),
    'param_scheduler.7.gamma=3': ('param_scheduler.7.gamma', 'no such place'),
    'default_hooks.checkpoint.save_best=nothing': ('default_hooks.checkpoint: ', 'nothing'),
    'custom_imports.imports=os': ('custom_imports.imports', 'into the file'),
    'load_from=no.pth': ('no.pth', 'does not exist'),
    'randomness.seed=abc': ('<U3', ''),  # raised by compiled code
}
FILES = {
    'syntax error': ('mine.py', 'model = dict(', 'SyntaxError'),
    'missing base': ('mine.py', "_base_ = 'nowhere.py'", 'nowhere.py'),
    'missing import': ('mine.py', "custom_imports = dict(imports=['no_such_module'])",
                       "No module named 'no_such_module'"),
    'weights': ('mine.pth', 'PK', 'are CONFIG and CHECKPOINT swapped?'),
    'JSON list': ('mine.json', '[1]', 'mine.json'),
}
NO_NUMBER = (0, -1, True, 1.5, '3', None, [3])
WRONG = {  # by key of a detector with three groups
    'num_query_groups': NO_NUMBER, 'num_queries': NO_NUMBER, 'new_group_noise': (-1, '3', None),
    'test_cfg.query_group': ('3', None, -1, 1., True, 3),
    'train_cfg.groups_at_once': (0, -1, 4, 1., True, '3', [3]),
    'train_cfg.assigner': (None, dict(type='HungarianAssigner', match_costs=[])),
}


@pytest.mark.parametrize('option', LINES)
def test_a_wrong_value_ends_a_training_in_a_line_with_its_part(tiny_config_file, tmp_path,
                                                               last_error, option):
    line = last_error('train', tiny_config_file, '--work-dir', tmp_path / 'work', '--cfg-options',
                      option)
    assert all(words in line for words in LINES[option])


@pytest.mark.parametrize('name', FILES)
def test_a_file_that_is_no_config_is_refused(tmp_path, last_error, name):
    file, content, words = FILES[name]
    (tmp_path / file).write_text(content)
    last = last_error('test', tmp_path / file, tmp_path / file, '--work-dir', tmp_path / 'w')
    assert file in last and words in last


def test_an_error_in_a_module_of_ones_own_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'mine_with_a_bug.py').write_text('undefined')
    (tmp_path / 'c.py').write_text("custom_imports = dict(imports=['mine_with_a_bug'])")
    with pytest.raises(NameError, match='undefined'):
        run_tool('train', tmp_path / 'c.py')


def test_what_a_test_cannot_draw_is_refused_in_the_words_of_mmdet(tiny_coco, tmp_path,
                                                                  last_error):
    cfg = tiny_config(tiny_coco)
    cfg.default_hooks.pop('visualization')
    cfg.dump(tmp_path / 'c.py')
    (tmp_path / 'x.pth').touch()
    last = last_error('test', tmp_path / 'c.py', tmp_path / 'x.pth', '--show-dir', 'x')
    assert 'VisualizationHook must be included in default_hooks' in last


def test_a_key_of_this_package_in_a_stock_detector_names_the_detector_with_groups(
        tiny_coco, tmp_path, last_error):
    cfg = tiny_config(tiny_coco)
    cfg.model.update(type='ConditionalDETR')
    cfg.dump(tmp_path / 'stock.py')
    last = last_error('train', tmp_path / 'stock.py', '--work-dir', tmp_path / 'work')
    assert 'num_query_groups' in last and "set model.type='GroupConditionalDETR'" in last


@pytest.mark.parametrize('family', [*FAMILIES, 'mask'])
def test_a_wrong_value_of_the_groups_is_refused_in_every_family(family):
    for key, values in WRONG.items():
        in_head = family == 'mask' and key == 'num_queries'
        for value in values:
            model = Config(dict(model=mask2former_config() if family == 'mask' else
                                family_config(family)))
            model.merge_from_dict({f'model.{"panoptic_head." * in_head}{key}': value})
            with pytest.raises(ConfigError, match=key.rsplit('.', 1)[-1]):
                MODELS.build(model.model)


@pytest.mark.parametrize(('key', 'near'), [('test_cfg.query_groups', 'query_group'),
                                           ('train_cfg.groups_at_one', 'groups_at_once')])
def test_a_nearly_right_key_of_the_groups_is_announced(warnings_logged, key, near):
    warn_once.cache_clear()
    model = Config(dict(model=family_config('dab')))
    MODELS.build(model.model)
    assert not warnings_logged()
    model.merge_from_dict({f'model.{key}': 1})
    MODELS.build(model.model)
    warning, = warnings_logged()
    assert f'model.{key} ' in warning and f'is {near}.' in warning


def test_an_option_for_a_variable_of_the_file_is_a_warning(warnings_logged):
    cfg = Config(dict(lr=1., optim_wrapper=dict(optimizer=dict(lr=1.)), load_from=None))
    merge_options(cfg, {'load_from': 'x', 'optim_wrapper.optimizer.lr': 2., 'work_dir': 'y'})
    assert warnings_logged() == []
    merge_options(cfg, dict(lr=2.))
    assert len(warnings_logged()) == 1 and 'edit lr in the file' in warnings_logged()[0]
