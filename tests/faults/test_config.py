"""Mistakes in a config: each as one change of a sound one, refused in a sentence with its key."""
import argparse

import pytest
import torch
from family_builders import FAMILIES, family_config
from mask_builders import mask2former_config
from mmdet.registry import MODELS
from mmengine.config import Config
from running import run_tool
from tiny import tiny_config

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.config_check import check_values
from groupdetr_mmdet.config import Options, merge_options

# --cfg-options, and what the sentence names.
VALUES = {
    'model.num_query_group=3': 'the nearest name is num_query_groups',
    'model.num_queries=abc': "model.num_queries='abc' must be an integer",
    'model.num_queries=None': 'model.num_queries=None must be',
    'model.num_queries=1.5': 'model.num_queries=1.5 must be',
    'model.num_queries=True': 'model.num_queries=True must be',
    'model.num_query_groups=0': 'model.num_query_groups=0 must be',
    'model.num_query_groups=True': 'model.num_query_groups=True must be',
    'model.test_cfg.query_group=1.0': 'model.test_cfg.query_group=1.0 must be',
    'model.test_cfg.query_group=True': 'model.test_cfg.query_group=True must be',
    'model.test_cfg.max_per_img=0': 'model.test_cfg.max_per_img=0 must be',
    'model.test_cfg.max_per_img=-1': 'model.test_cfg.max_per_img=-1 must be',
    'model.test_cfg.max_per_img=abc': 'model.test_cfg.max_per_img',
    'model.decoder.num_layers=0': 'model.decoder.num_layers=0 must be',
    'model.bbox_head.embed_dims=48': 'bbox_head.embed_dims',
    'model.bbox_head.num_classes=0': 'model.bbox_head.num_classes=0 must be',
    'model.bbox_head.type=GroupConditionalDETRHaed': 'nearest name is GroupConditionalDETRHead',
    'model.bbox_head.loss_cls.type=FocalLos': 'the nearest name is FocalLoss',
    'model.bbox_head.loss_cls.gama=2': 'the nearest name is gamma',
    'model.type=GroupConditionalDETRR': 'the nearest name is GroupConditionalDETR',
    'model.type=None': 'model.type=None is an unknown type',
    'model.train_cfg=None': 'model.train_cfg',
    'model.train_cfg.assigner.type=GroupHungarianAsigner': 'nearest name is GroupHungarianAssig',
    'model.train_cfg.assigner.type=None': 'model.train_cfg.assigner.type=None is an unknown type',
    'model.type=abc': "model.type='abc' is an unknown type",
    'model.train_cfg.assigner=3': 'model.train_cfg.assigner=3 must be a dict',
    'model.bbox_head.loss_cls.alpha=[3]': 'loss_cls.alpha=[3] must be a number',
    'env_cfg.dist_cfg=[3]': 'env_cfg.dist_cfg=[3] must be a dict',
    'train_dataloader.sampler=abc': "train_dataloader.sampler='abc' must be a dict",
    'val_dataloader.dataset.data_prefix=[3]': 'dataset.data_prefix=[3] must be a dict',
    'train_dataloader.dataset.metainfo.classes=3': 'metainfo.classes=3 must be',
    'val_dataloader.dataset.metainfo.classes=True': 'metainfo.classes=True must be',
    'model.train_cfg.assigner.match_costs=None': 'model.train_cfg.assigner.match_costs',
    'model.train_cfg.assigner.match_costs=[]': 'model.train_cfg.assigner.match_costs',
    'model.backbone.depht=50': 'model.backbone.depht',
    'train_cfg.max_epochs=0': 'train_cfg.max_epochs=0 must be',
    'train_cfg.max_epoch=3': 'the nearest name is max_epochs',
    'train_dataloader.batch_size=0': 'train_dataloader.batch_size=0 must be',
    'train_dataloader.batch_size=two': "train_dataloader.batch_size='two' must be",
    'train_dataloader.batchsize=2': 'the nearest name is batch_size',
    'train_dataloader.num_workers=-1': 'train_dataloader.num_workers=-1 must be',
    'train_dataloader.dataset.pipeline.0.type=LoadImage': 'pipeline[0].type',
    'train_dataloader.dataset.anno_file=x': 'the nearest name is ann_file',
    'val_dataloader=None': 'val_dataloader is missing and val_cfg is not',
    'val_evaluator.type=CocoMetrics': 'the nearest name is CocoMetric',
    'val_evaluator.metrc=bbox': 'the nearest name is metric',
    'optim_wrapper.optimizer.lr=abc': "optim_wrapper.optimizer.lr='abc' must be a number",
    'optim_wrapper.optimizer.lr=-1': 'optim_wrapper.optimizer.lr=-1 must be',
    'optim_wrapper.optimizer.lr=nan': 'optim_wrapper.optimizer.lr=nan must be',
    'optim_wrapper.optimizer.type=AdamX': 'optim_wrapper.optimizer.type',
    'optim_wrapper.optimizer.weight_decai=1': 'the nearest name is weight_decay',
    'optim_wrapper.clip_gard=1': 'the nearest name is clip_grad',
    'optim_wrapper.dtype=float16': 'train with --amp',
    'optim_wraper.optimizer.lr=1': 'the nearest name is optim_wrapper',
    'param_scheduler.0.milestone=3': 'the nearest name is milestones',
    'default_hooks.logger.intervall=3': 'the nearest name is interval',
    'default_hooks.logger.type=LogerHook': 'the nearest name is LoggerHook',
    'visualizer.type=Visualiser': 'the nearest name is Visualizer',
    'train_cfg.5=3': 'train_cfg.5 is unknown',
    'model.encoder.layer_cfg.self_attn_cfg.num_heads=7': 'num_heads=7 must divide embed_dims=32',
    'model.decoder.layer_cfg.self_attn_cfg.num_heads=7': 'num_heads=7 must divide embed_dims=32',
    'model.decoder.layer_cfg.self_attn_cfg.num_heads=0': 'num_heads=0 must be an integer',
    'model.decoder.layer_cfg.ffn_cfg.feedforward_channels=0': 'feedforward_channels=0 must be',
    'model.neck.in_channels=abc': "model.neck.in_channels='abc' must be a list",
    'model.neck.out_channels=48': 'model.neck.out_channels=48 differs from',
    'model.neck=None': 'model.neck=None must be a dict',
    'model.encoder=None': 'model.encoder=None must be a dict',
    'model.data_preprocessor=None': 'model.data_preprocessor=None must be a dict',
    'model.data_preprocessor.std=[0,1,1]': 'model.data_preprocessor.std=0 must be a number above',
    'model.data_preprocessor.pad_size_divisor=0': 'pad_size_divisor=0 must be an integer',
    'model.bbox_head.type=DETRHead': 'DETRHead is not the head of GroupConditionalDETR',
    'model.bbox_head.loss_cls.loss_weight=nan': 'loss_cls.loss_weight=nan must be a number',
    'model.bbox_head.loss_bbox.loss_weight=-1': 'loss_bbox.loss_weight=-1 must be a number',
    'model.bbox_head.loss_cls.gamma=abc': "loss_cls.gamma='abc' must be a number",
    'model.train_cfg.assigner.match_costs.0.weight=-2': 'match_costs[0].weight=-2 must be',
    'model.train_cfg.asigner.type=Foo': 'the nearest name is assigner',
    'model.test_cfg.foo=1': 'model.test_cfg.foo is unknown, GroupConditionalDETR has no such',
    'model.backbone.frozen_stages=-3': 'frozen_stages=-3 must be an integer of at least -1',
    'model.decoder.num_cp=-2': 'model.decoder.num_cp=-2 must be',
    'model.test_cfg.query_groups=0': 'model.test_cfg.query_groups is unknown',
    'model.test_cfg.max_per_image=3': 'the nearest name is max_per_img',
    'model.backbone.base_channels=0': 'model.backbone.base_channels=0 must be',
    'train_dataloader=3': 'train_dataloader=3 must be a dict or None',
    'train_dataloader.drop_last=abc': "train_dataloader.drop_last='abc' must be True or False",
    'train_dataloader.dataset.metainfo.clases=red': 'the nearest name is classes',
    'train_dataloader.dataset.data_prefix.imgs=x': 'the nearest name is img',
    'train_dataloader.dataset.filter_cfg.filter_empty_gt=abc': "gt='abc' must be True or False",
    'env_cfg.cudnn_benchmark=abc': "env_cfg.cudnn_benchmark='abc' must be True or False",
    'train_dataloader.dataset.filter_cfg.min_sizes=3': 'the nearest name is min_size',
    'val_dataloader.drop_last=True': 'val_dataloader.drop_last=True leaves images out',
    'val_dataloader.dataset.pipeline.1.keep_ratio=abc': "keep_ratio='abc' must be True or False",
    'optim_wrapper=3': 'optim_wrapper=3 must be a dict',
    'optim_wrapper.optimizer.lr=None': 'optim_wrapper.optimizer.lr=None must be a number',
    'optim_wrapper.clip_grad.max_norm=abc': "clip_grad.max_norm='abc' must be a number",
    'optim_wrapper.clip_grad.max_norm=0': 'clip_grad.max_norm=0 must be a number above 0',
    'optim_wrapper.clip_grad.max_norm=-1': 'clip_grad.max_norm=-1 must be a number above 0',
    'optim_wrapper.clip_grad.norm_typ=2': 'the nearest name is norm_type',
    'optim_wrapper.paramwise_cfg.custom_key.backbone.lr_mult=1': 'nearest name is custom_keys',
    'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mul=1': 'the nearest name is lr_mult',
    'optim_wrapper.paramwise_cfg.custom_keys=abc': "custom_keys='abc' must be a dict",
    'optim_wrapper.paramwise_cfg.custom_keys.neck=0.1': 'custom_keys.neck=0.1 must be a dict',
    'optim_wrapper.paramwise_cfg.custom_keys.neck.lr_mult=-1': 'lr_mult=-1 must be a number',
    'param_scheduler.0.milestones=abc': "param_scheduler[0].milestones='abc' must be a list",
    'param_scheduler.0.gamma=nan': 'param_scheduler[0].gamma=nan must be a number',
    'default_hooks=3': 'default_hooks=3 must be a dict',
    'default_hooks.checkpoint.interval=0': 'default_hooks.checkpoint.interval=0 must be',
    'default_hooks.checkpoint.interval=abc': "interval='abc' must be an integer",
    'default_hooks.checkpoint.max_keep_ckpts=abc': "max_keep_ckpts='abc' must be an integer",
    'default_hooks.checkpoint.max_keep_ckpt=1': 'the nearest name is max_keep_ckpts',
    'default_hooks.logger.interval=0': 'default_hooks.logger.interval=0 must be',
    'default_hooks.checkpoint=3': 'default_hooks.checkpoint=3 must be a dict or None',
    'val_evaluator=[]': 'val_evaluator is missing and val_dataloader is not',
    'custom_hooks=3': 'custom_hooks=3 must be a list',
    'custom_imports.imports=os': 'write custom_imports into the file',
    'env_cfg.dist_cfg.timeout=-1': 'env_cfg.dist_cfg.timeout=-1 must be a number above 0',
    'env_cfg.dist_cfg.timeot=3': 'the nearest name is timeout',
    'log_processor.window_size=abc': "log_processor.window_size='abc' must be",
    'log_processor.window_siz=3': 'the nearest name is window_size',
    'randomness.seed=abc': "randomness.seed='abc' must be an integer",
    'auto_scale_lr.base_batch_size=0': 'auto_scale_lr.base_batch_size=0 must be',
    'load_from=7': 'load_from=7 must be a text or None',
    'resume=abc': "resume='abc' must be True or False",
    'log_level=3': 'log_level=3 must be a text',
    'param_scheduler.7.gamma=3': '--cfg-options param_scheduler.7.gamma',
}

BUILT = {  # found when the part is built
    'model.train_cfg.assigner=None': 'model.train_cfg.assigner',
    'model.test_cfg.query_group=77': 'model.test_cfg.query_group=77 is not one of the groups',
    'model.decoder.num_cp=abc': 'num_cp',
    'model.decoder.num_layer=3': 'the nearest name is num_layers',
    'model.backbone.frozen_stages=9': 'ResNet cannot be built',
    'model.neck.in_channels=[7]': 'model.neck does not work as the config says',
    'model.neck.kernel_size=0': 'cannot be built as the config says (float division by zero)',
    'train_dataloader.dataset.data_prefix.img=7': 'data_prefix.img=7 must be a text',
    'train_dataloader.dataset.data_prefix.depth=7': 'data_prefix.depth=7 must be a text',
    'model.backbone.in_channels=4': 'model.backbone does not work as the config says',
    'model.train_cfg.assigner.match_costs.2.iou_mode=foo': 'bbox_overlaps',
    'model.backbone.depth=abc': 'ResNet cannot be built as the config says',
    'train_dataloader.dataset.metainfo.classes=[]': 'metainfo.classes=[] is empty',
    'train_dataloader.dataset.pipeline=[]': 'let it have LoadImageFromFile, and end with Pack',
    'train_dataloader.dataset.pipeline.1.with_bbox=False': 'gives no boxes to train on',
    'train_dataloader.dataset.pipeline.1.with_mask=True': 'cannot go through LoadAnnotations',
    'train_dataloader.dataset.pipeline.2.meta_keys=[foo]': 'does not keep img_shape',
    'val_dataloader.dataset.pipeline.1.interpolation=foo': 'cannot go through Resize',
    'val_dataloader.dataset.test_mode=False': 'test_mode=False keeps other images than those to s',
    'train_dataloader.dataset.test_mode=True': 'test_mode=True keeps other images than those to t',
    'model.positional_encoding.normalize=abc': "normalize='abc' must be True or False",
    'model.backbone.out_indices=[0,1]': 'model.neck does not work as the config says',
    'default_hooks.checkpoint.save_best=nothing': 'Cannot infer the rule for key nothing',
    'val_evaluator.metric=[]': 'val_evaluator.metric is empty',
    'val_evaluator.metric=segm': 'finds no masks',
    'val_evaluator.metric_items=[foo]': "val_evaluator.metric_items has 'foo'",
    'val_evaluator.ann_file=None': 'val_evaluator.ann_file is missing',
}


@pytest.fixture
def train(tiny_config_file, tmp_path, capfd):
    """Run a training that must be refused, and return its last line."""

    def run(*options):
        status = run_tool('train', tiny_config_file, '--work-dir', tmp_path / 'work', *options)
        captured = capfd.readouterr()
        last = captured.err.splitlines()[-1]
        assert status == 2 and last.startswith('error: '), captured.err
        assert 'Traceback' not in captured.err and 'Epoch(train)' not in captured.out
        return last

    return run


@pytest.mark.parametrize('option', VALUES)
def test_a_wrong_value_is_refused_in_a_sentence_with_its_key(tiny_coco, option):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=Options)
    options = parser.parse_args(['--cfg-options', option]).cfg_options
    cfg = tiny_config(tiny_coco)
    with pytest.raises(ConfigError) as error:
        merge_options(cfg, options)
        check_values(cfg)
    assert VALUES[option] in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('option', [*BUILT, 'model.num_query_group=3'])
def test_a_wrong_value_ends_a_training_at_its_start(train, option):
    assert {**VALUES, **BUILT}[option] in train('--cfg-options', option)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is CUDA')
def test_mixed_precision_without_a_gpu_is_refused(train):
    assert 'needs a GPU' in train('--cfg-options', 'optim_wrapper.type=AmpOptimWrapper')


def test_a_rate_that_lets_the_loss_explode_ends_in_a_sentence(tiny_config_file, tmp_path, capfd):
    status = run_tool('train', tiny_config_file, '--work-dir', tmp_path / 'work', '--cfg-options',
                      'optim_wrapper.optimizer.lr=1e18', 'optim_wrapper.clip_grad=None')
    last = capfd.readouterr().err.splitlines()[-1]
    assert status == 2 and last.startswith('error: ') and 'lower optim_wrapper' in last


FILES = {
    'syntax error': ('mine.py', 'model = dict(', 'mine.py is not a config (SyntaxError'),
    'missing base': ('mine.py', "_base_ = 'nowhere.py'", 'mine.py is not a config'),
    'failing code': ('mine.py', 'x = 1 / 0', 'mine.py is not a config (ZeroDivisionError'),
    'missing import': ('mine.py', "custom_imports = dict(imports=['no_such_module'])",
                       'mine.py is not a config'),
    'no model': ('mine.py', 'x = 1', 'has no model'),
    'weights': ('mine.pth', 'PK', 'are CONFIG and CHECKPOINT swapped?'),
    'picture': ('mine.jpg', 'JFIF', 'mine.jpg is not a config'),
    'JSON list': ('mine.json', '[1]', 'mine.json is not a config'),
}


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('command', ['train', 'test'])
def test_a_file_that_is_no_config_is_refused(tmp_path, capfd, name, command):
    file, content, words = FILES[name]
    (tmp_path / file).write_text(content)
    others = [tmp_path / file] if command == 'test' else []
    assert run_tool(command, tmp_path / file, *others, '--work-dir', tmp_path / 'w') == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith('error: ') and words in last


def test_an_option_without_value_is_refused(tiny_config_file, capfd):
    assert run_tool('train', tiny_config_file, '--cfg-options', 'model.num_queries') == 2
    assert 'model.num_queries is not key=value' in capfd.readouterr().err


def test_a_misspelt_part_is_refused(tiny_coco):
    cfg = tiny_config(tiny_coco)
    cfg = Config({key.replace('optim_wrapper', 'optim_wraper'): value
                  for key, value in cfg.items()})
    with pytest.raises(ConfigError, match='optim_wraper is no part .* optim_wrapper is missing'):
        check_values(cfg)


def test_a_sound_config_passes(tiny_coco):
    check_values(tiny_config(tiny_coco))


NO_NUMBER = (0, -1, True, 1.5, '3', None, [3])
WRONG = {  # by key of a detector with three groups
    'num_query_groups': NO_NUMBER, 'num_queries': NO_NUMBER, 'new_group_noise': (-1, '3', None),
    'test_cfg.query_group': (*NO_NUMBER[1:], 3), 'test_cfg.max_per_img': NO_NUMBER,
    'test_cfg.each_group': ('3', 1.5, [3]), 'test_cfg.foo': [1], 'train_cfg.foo': [1],
    'train_cfg.groups_at_once': (0, -1, 1.5, '3', [3]), 'separate_self_attn': ('3', 1.5, [3]),
    'dn_cfg.label_noise_scale': (-1, '3', [3]), 'dn_cfg.box_noise_scale': (-1, True),
    'dn_cfg.group_cfg.num_groups': NO_NUMBER[:-2], 'dn_cfg.group_cfg.num_dn_queries': NO_NUMBER,
    'dn_cfg.group_cfg.dynamic': ('3', [3]), 'dn_cfg.group_cfg.foo': [1], 'dn_cfg': (3, [3]),
}
OF_MASKS = {'num_queries': 'panoptic_head.num_queries',
            'test_cfg.max_per_img': 'test_cfg.max_per_image', 'separate_self_attn': None}


@pytest.mark.parametrize('family', [*FAMILIES, 'mask'])
def test_a_wrong_value_of_the_groups_is_refused_in_every_family(family):
    model = mask2former_config() if family == 'mask' else family_config(family)
    for name, values in WRONG.items():
        key = OF_MASKS.get(name, name) if family == 'mask' else name
        for value in values if key and ('dn_cfg' in model or 'dn_cfg' not in key) else ():
            cfg = Config(dict(model=model))
            cfg.merge_from_dict({f'model.{key}': value})
            with pytest.raises(ConfigError, match=key.rsplit('.', 1)[-1]):
                check_values(cfg)
                MODELS.build(cfg.model)


def test_dino_with_groups_needs_its_head():
    cfg = Config(dict(model=family_config('dino')))
    check_values(cfg)
    cfg.model.bbox_head.type = 'DINOHead'
    with pytest.raises(ConfigError, match='GroupDINOHead'):
        check_values(cfg)
