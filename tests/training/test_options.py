"""The options of a training change its config."""
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, PARAM_SCHEDULERS
from tiny import tiny_config

from groupdetr_mmdet.config import read_config
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.training import options
from groupdetr_mmdet.training.runner import RunConfig, check_data, make_resumable


RECORDED = json.loads((Path(__file__).parents[2] / 'benchmarks/evidence.json').read_text())


@pytest.fixture
def cfg(tmp_path) -> Config:
    return tiny_config(tmp_path)


@pytest.mark.parametrize(('name', 'epochs', 'milestones'), [
    ('group_cond_detr_r50_12e', 24, [22]), ('group_cond_detr_r50_50e', 10, [8]),
    ('group_cond_detr_r50_12e', 1, [1])])
def test_the_learning_rate_falls_at_the_same_part_of_other_epochs(name, epochs, milestones):
    cfg = read_config(name)
    options.set_epochs(cfg, epochs)
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler[0].milestones == milestones


@pytest.mark.parametrize(('epochs', 'mixed'), [(20, 14), (1, 1)])
def test_strong_augmentation_ends_at_the_same_part_of_other_epochs(epochs, mixed):
    cfg = read_config('group_cond_detr_strong_demo')
    options.set_epochs(cfg, epochs)
    assert cfg.custom_hooks[0].switch_epoch == mixed


@pytest.mark.parametrize(('epochs', 'begin', 'end'), [(20, 14, 20), (1, 0, 1)])
def test_a_warm_up_keeps_its_iterations(epochs, begin, end):
    cfg = read_config('group_cond_detr_demo')
    options.set_epochs(cfg, epochs)
    warm_up, decay = cfg.param_scheduler
    assert (warm_up.begin, warm_up.end) == (0, 100)
    assert (decay.begin, decay.end) == (begin, end)


@pytest.mark.parametrize('schedule', [
    dict(type='CosineAnnealingLR', T_max=40, end=40), dict(type='PolyLR', end=40, eta_min=.01),
    dict(type='OneCycleLR', total_steps=40, eta_max=.5), dict(type='StepLR', step_size=10),
    dict(type='MultiStepLR', milestones=[10, 30])], ids=lambda schedule: schedule['type'])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_schedule_of_twice_the_epochs_takes_two_steps_for_one(cfg, schedule, by_epoch):
    def rates(steps):
        optimizer = torch.optim.SGD([torch.zeros(1)], 1.)
        scheduler = PARAM_SCHEDULERS.build(dict(cfg.param_scheduler, by_epoch=True),
                                           default_args=dict(optimizer=optimizer))
        found = []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            scheduler.step()
        return found

    cfg.param_scheduler = dict(schedule, by_epoch=by_epoch)  # one schedule needs no list
    once = rates(40)
    options.set_epochs(cfg, 2 * cfg.train_cfg.max_epochs)
    assert rates(80)[::2] == pytest.approx(once, abs=.03)


@pytest.mark.parametrize(('batch_size', 'steps', 'ratio'), [(1, 2, 1), (2, 1, 1), (4, 1, 2)])
def test_an_update_keeps_its_images_and_the_learning_rate_follows_them(
        cfg, batch_size, steps, ratio):
    """mmengine scales the rate by the images of a step alone."""
    cfg.auto_scale_lr.enable = True
    options.set_batch_size(cfg, batch_size)
    options.scale_for_accumulation(cfg)
    assert cfg.train_dataloader.batch_size == batch_size
    assert cfg.optim_wrapper.accumulative_counts == steps
    assert batch_size / cfg.auto_scale_lr.base_batch_size == ratio


@pytest.mark.parametrize('best', ['auto', 'coco/bbox_mAP_50'])
def test_hooks_are_added_to_those_of_the_config(cfg, best):
    cfg.custom_hooks = [dict(type='NumClassCheckHook')]
    if best != 'auto':
        cfg.default_hooks.checkpoint.save_best = best
    options.average_weights(cfg)
    options.keep_best(cfg)
    options.stop_early(cfg, 3)
    assert [hook['type'] for hook in cfg.custom_hooks] == [
        'NumClassCheckHook', 'EMAHook', 'RisenEarlyStoppingHook']
    assert cfg.default_hooks.checkpoint.save_best == best
    assert cfg.custom_hooks[-1]['monitor'] == ('coco/bbox_mAP' if best == 'auto' else best)


def test_a_config_without_hooks_gets_the_best_checkpoint_and_a_hook_of_ones_own_stays(cfg):
    cfg.default_hooks = cfg.visualizer = None
    options.keep_best(cfg)
    options.log_to(cfg, 'Tensorboard')
    assert cfg.default_hooks.checkpoint == dict(
        type='CheckpointHook', interval=1, save_best='auto')
    assert [x.type for x in cfg.visualizer.vis_backends] == [
        'LocalVisBackend', 'TensorboardVisBackend']
    cfg.default_hooks.checkpoint = own = dict(type='MySaver')
    options.keep_best(cfg)
    assert cfg.default_hooks.checkpoint == own


@pytest.mark.parametrize('suffix', ['py', 'json', 'yaml'])
def test_a_run_writes_the_config_that_it_got(cfg, tmp_path, suffix):
    cfg = RunConfig(Config(json.loads(json.dumps(cfg.to_dict()))))  # lists for tuples
    given = Config(cfg.to_dict())
    check_data(cfg)
    make_resumable(cfg)
    cfg.dump(tmp_path / f'X.{suffix}')
    assert Config.fromfile(tmp_path / f'X.{suffix}').to_dict() == given.to_dict() != cfg.to_dict()


def test_an_early_stop_names_a_metric_that_it_cannot_follow(cfg):
    cfg.val_evaluator = dict(type='VOCMetric')
    with pytest.raises(ConfigError, match='--early-stop .* VOCMetric.*save_best'):
        options.stop_early(cfg, 3)
    cfg.default_hooks.checkpoint.save_best = 'pascal_voc/mAP'
    options.stop_early(cfg, 3)
    assert cfg.custom_hooks[-1]['monitor'] == 'pascal_voc/mAP'
    cfg.default_hooks.checkpoint.save_best = ['pascal_voc/mAP', 'pascal_voc/AP50']
    options.stop_early(cfg, 3)
    assert cfg.custom_hooks[-1]['monitor'] == 'pascal_voc/mAP', 'the first one'


def stopped_after(curve, patience: int, resumed: bool = False, monitor: str = 'AP',
                  **changes) -> int:
    """Number of validations after which an early stop ends a run with these AP."""
    cfg = dict(dict(type='RisenEarlyStoppingHook', monitor=monitor, patience=patience), **changes)
    hook = HOOKS.build(cfg)
    runner = SimpleNamespace(train_loop=SimpleNamespace(stop_training=False),
                             logger=SimpleNamespace(info=lambda text: None))
    for done, value in enumerate(curve, 1):
        if resumed:
            checkpoint = {}
            hook.before_save_checkpoint(runner, checkpoint)
            hook = HOOKS.build(cfg)
            hook.after_load_checkpoint(SimpleNamespace(_resume=True), checkpoint)
        hook.after_val_epoch(runner, {monitor: value})
        if runner.train_loop.stop_training:
            return done
    return len(curve)


def test_an_early_stop_ends_no_recorded_run_before_half_of_its_ap():
    for name, run in RECORDED.items():
        curve = [ap for _, ap, *_ in run['curve']]
        assert max(curve[:stopped_after(curve, 5)]) >= .5 * max(curve), name


@pytest.mark.parametrize(('curve', 'done'), [
    ([.001] * 20, 20), ([.001] * 10 + [.1] * 10, 13), ([.3, .2, .2, .4], 3),
    ([.3, .3005, .3009, .4], 3), ([.001, float('nan'), .1], 2)])
def test_validations_count_once_the_metric_has_risen(curve, done):
    assert stopped_after(curve, 2) == stopped_after(curve, 2, resumed=True) == done


def test_a_metric_in_percent_ends_a_run_where_its_fraction_does(cfg):
    cfg.default_hooks.checkpoint.save_best = 'coco_panoptic/PQ'
    options.stop_early(cfg, 2)
    curve = [.001] * 3 + [.1, .1005, .1009, .2]
    done = stopped_after([100 * x for x in curve], **cfg.custom_hooks[-1])
    assert done == stopped_after(curve, 2) == 6
