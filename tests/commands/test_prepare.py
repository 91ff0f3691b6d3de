"""A folder of images becomes a training, and the folder stays as it is."""
import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from layout_builders import LAYOUTS, write_layout
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from running import run_tool
from tiny import CLASSES

from groupdetr_mmdet.commands.prepare import was_prepared
from groupdetr_mmdet.config import read_config
from groupdetr_mmdet.training import recipe


@pytest.fixture
def data(tiny_coco, tmp_path, monkeypatch) -> Path:
    """A folder in YOLO's layout; the current folder is another."""
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    return write_layout('yolo', tiny_coco, tmp_path / 'photos')


def contents(root: Path) -> dict:
    return {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}


@pytest.mark.parametrize('kind', LAYOUTS)
def test_the_config_says_all_that_a_training_needs(tiny_coco, tmp_path, kind, capsys):
    data = write_layout(kind, tiny_coco, tmp_path / 'data')
    before = contents(data)
    mine = tmp_path / 'elsewhere/mine.py'
    assert run_tool('prepare', data, '--out', mine, '--model', 'small') == 0
    out = capsys.readouterr().out
    assert contents(data) == before
    init_default_scope('mmdet')
    cfg = Config.fromfile(mine)
    assert MODELS.get(cfg.model.type).__name__ == 'GroupConditionalDETR'
    assert cfg.model.bbox_head.num_classes == len(CLASSES) and cfg.model.num_queries == 20
    datasets = [DATASETS.build(getattr(cfg, f'{x}_dataloader').dataset) for x in ('train', 'val')]
    assert sum(map(len, datasets)) == 12 and len(datasets[0]) in (8, 10)
    assert all(sample['inputs'].shape[1:] == (512, 512) for sample in datasets[0])
    assert out.splitlines()[-1] == f'Next: groupdetr train {mine}'
    assert all(re.search(rf'{name} +│ \d', out) for name in CLASSES)
    assert mine.read_text().count(f"'{data}") == 1, 'the path is set once'


def test_choices_are_in_the_config(data):
    weights, state_dict = Path('mine.pth'), OrderedDict(weight=torch.ones(1))
    state_dict._metadata = {'': dict(num_queries=70, num_query_groups=5)}
    torch.save(dict(state_dict=state_dict), weights)
    assert run_tool('prepare', data, '--model', 'dab', '--weights', weights, '--image-size', 400,
                    '--augment', 'light') == 0
    cfg = Config.fromfile('photos.py')
    assert cfg.model.type == 'GroupDABDETR' and cfg.load_from == 'mine.pth'
    assert (cfg.model.num_queries, cfg.model.num_query_groups) == (70, 5), 'as in the weights'
    assert cfg.train_cfg.max_epochs == 150 and cfg.param_scheduler[0].milestones == [138]
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    assert cfg.optim_wrapper.optimizer.lr == 2e-4 and cfg.optim_wrapper.clip_grad.max_norm == .1
    assert cfg.default_hooks.checkpoint.save_best
    flip, resize = cfg.train_dataloader.dataset.pipeline[2:4]
    assert flip.type == 'RandomFlip' and (resize.scale, resize.backend) == ((666, 400), 'pillow')
    for mode in ('val', 'test'):
        step = cfg[f'{mode}_dataloader'].dataset.pipeline[1]
        assert (step.type, step.scale, step.keep_ratio, step.backend) == (
            'DETRResize', (666, 400), True, 'pillow')


@pytest.mark.parametrize('args, num_groups, lr', [
    (['--model', 'small'], 1, 2e-4), (['--weights', 'none'], 1, 1e-4), ([], 11, 2e-4),
    (['--model', 'dino'], 1, 2e-4)])
def test_groups_and_learning_rate_follow_the_weights(data, args, num_groups, lr):
    assert run_tool('prepare', data, *args) == 0
    cfg = Config.fromfile('photos.py')
    assert cfg.model.num_query_groups == num_groups and cfg.optim_wrapper.optimizer.lr == lr


def test_a_fresh_decoder_has_groups_if_there_are_many_images(data, monkeypatch):
    monkeypatch.setattr(recipe, 'MANY_IMAGES', 2)
    assert run_tool('prepare', data, '--model', 'small') == 0
    assert Config.fromfile('photos.py').model.num_query_groups == 3


def test_strong_augmentation_ends_before_the_training(data):
    assert run_tool('prepare', data, '--weights', 'none', '--augment', 'strong') == 0
    cfg = Config.fromfile('photos.py')
    hook, = cfg.custom_hooks
    mixed, unmixed = ([step.type for step in pipeline] for pipeline in (
        cfg.train_dataloader.dataset.pipeline, hook.switch_pipeline))
    assert mixed == [*unmixed[:2], 'RandomApply', 'YOLOXHSVRandomAug', *unmixed[2:]]
    assert (hook.switch_epoch, cfg.train_cfg.max_epochs) == (112, 150)


def test_what_people_change_is_a_key_at_the_top(data):
    """Each line is edited, and each edit arrives."""
    assert run_tool('prepare', data, '--weights', 'none') == 0
    config = Path('photos.py')
    cfg, stock = Config.fromfile(config), read_config('group_cond_detr_r50_12e')
    changes = dict(image_size=(500, 300), num_query_groups=2, max_epochs=24, lr=.5, batch_size=3)
    pipelines = [part.train_dataloader.dataset.pipeline for part in (cfg, stock)]
    sizes = [sorted(map(sorted, pipeline[3].transforms[0][0].scales)) for pipeline in pipelines]
    assert sizes[0] == sizes[1], "DETR's at its image size"
    crops = [pipeline[3].transforms[1][1].crop_size for pipeline in pipelines]
    assert crops[0] == crops[1] and len(pipelines[0]) == len(pipelines[1])
    text = config.read_text()
    for key, value in changes.items():
        text, count = re.subn(rf'(?m)^{key} = .*?(  #|$)', rf'{key} = {value}\1', text)
        assert count == 1 and text.index(f'{key} = ') < text.index('data_root')
    config.write_text(text)
    cfg = Config.fromfile(config)
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert pipeline[3].transforms[0][0].scales[-1] == (500, 300)
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (500, 300)
    assert cfg.model.num_query_groups == 2 and cfg.train_dataloader.batch_size == 3
    assert cfg.train_cfg.max_epochs == 24 and cfg.param_scheduler[0].milestones == [22]
    assert cfg.optim_wrapper.optimizer.lr == .5


def test_a_config_of_a_file_in_the_folder_is_of_other_data(data, tmp_path):
    assert run_tool('prepare', data / 'data.yaml', '--weights', 'none') == 0
    assert was_prepared(Path('photos.py'), str(data / 'data.yaml'))
    assert not was_prepared(Path('photos.py'), str(data))


def test_a_test_split_is_kept_for_the_test(tiny_coco, tmp_path):
    data = write_layout('roboflow', tiny_coco, tmp_path / 'data')
    content = json.loads((data / 'valid/_annotations.coco.json').read_text())
    shutil.copytree(data / 'valid', data / 'test')
    content['images'] = content['images'][:2]
    ids = [image['id'] for image in content['images']]
    content['annotations'] = [x for x in content['annotations'] if x['image_id'] in ids]
    (data / 'test/_annotations.coco.json').write_text(json.dumps(content))
    mine = tmp_path / 'mine.py'
    assert run_tool('prepare', data, '--out', mine, '--weights', 'none') == 0
    cfg = Config.fromfile(mine)
    assert cfg.load_from is None
    assert [len(json.loads(Path(evaluator.ann_file).read_text())['images'])
            for evaluator in (cfg.val_evaluator, cfg.test_evaluator)] == [4, 2]


@pytest.mark.parametrize(('args', 'message'), [
    (['--out', 'mine.yaml'], '--out: mine.yaml is not the name of a config'),
    (['--out', '../photos/mine.py'], '--out ../photos/mine.py is in DATA'),
    (['--out', 'there.py'], '--out there.py exists'),
    (['--val-fraction', '1'], '--val-fraction 1.0 must be above 0 and below 1'),
    (['--weights', 'nowhere.pth'], '--weights: nowhere.pth does not exist'),
])
def test_mistakes(data, last_error, args, message):
    Path('there.py').touch()
    assert re.match(f'error: {message}', last_error('prepare', data, *args))
    assert [path.name for path in Path().iterdir()] == ['there.py']


def test_training_a_folder_needs_a_name_that_is_free(tiny_config_file, data, last_error):
    for args, words in (
            ([data, '--launcher', 'pytorch'], 'run groupdetr prepare'),
            ([data, '--model', 'small', '--weights', 'nowhere.pth'], '--weights: nowhere.pth'),
            ([tiny_config_file, '--model', 'dab'], '--model is for a folder of images')):
        assert words in last_error('train', *args) and not list(Path().iterdir())
    Path('photos.py').touch()
    for args, words in ((['--split-seed', 3], '--seed would change'), ([], 'for other data')):
        error = last_error('train', data, *args)
        assert 'photos.py exists' in error and words in error
