"""Killed after any step and resumed, a run has the weights of one that was never stopped.

Bit for bit, on the CPU with one thread, with dropout, random augmentation and averaged weights.
"""
import random

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tiny import tiny_config, write_tiny_coco

from groupdetr_mmdet.checkpoints.exact import PROGRESS, SeededBatch
from groupdetr_mmdet.training.runner import build_runner

EPOCHS, STEPS = 2, 4


class Killed(Exception):
    pass


@HOOKS.register_module()
class KillHook(Hook):
    """Ends a run after a step, when everything else of that step is done."""
    priority = 'LOWEST'

    def __init__(self, step):
        self.step = step

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.step:
            raise Killed


def config(coco, work_dir, num_workers=0, persistent=False, by_epoch=False, validated=False,
           **changes):
    cfg = tiny_config(coco)
    attention = dict(attn_drop=0.1, proj_drop=0.1)
    cfg.merge_from_dict({
        'work_dir': str(work_dir),
        'model.decoder.layer_cfg.self_attn_cfg': attention,
        'model.decoder.layer_cfg.ffn_cfg.ffn_drop': 0.1,
        'train_dataloader.num_workers': num_workers,
        'train_dataloader.persistent_workers': persistent,
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.by_epoch': by_epoch,
        'default_hooks.logger.interval': 100,
        'env_cfg': dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0)),
        'param_scheduler': [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
                            dict(type='MultiStepLR', by_epoch=True, milestones=[1])],
        'custom_hooks': [dict(type='EMAHook', momentum=0.1)],
        'log_level': 'ERROR',
        **changes})
    if not validated:
        cfg.update(dict.fromkeys(('val_dataloader', 'val_evaluator', 'val_cfg')))
    cfg.train_dataloader.dataset.pipeline[2:2] = [
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomChoiceResize', scales=[(48, 48), (64, 64), (80, 80)], keep_ratio=True),
        dict(type='PhotoMetricDistortion')]
    return cfg


def train(cfg, killed_after=None, resume=False):
    torch.set_num_threads(1)
    cfg = Config(cfg if isinstance(cfg, dict) else cfg.to_dict())
    cfg.resume = resume
    cfg.experiment_name = f'{cfg.work_dir}-{killed_after}-{resume}'
    if killed_after:
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type='KillHook', step=killed_after)]
    torch.manual_seed(123 if resume else 0)  # what this process drew before must not matter
    runner = build_runner(cfg)
    if not resume:
        torch.manual_seed(0)
    try:
        runner.train()
    except Killed:
        return None
    return runner


def state(runner):
    ema = next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
    return dict(model=runner.model.state_dict(), ema=ema.state_dict(),
                optimizer=runner.optim_wrapper.state_dict(),
                schedulers=[x.state_dict() for x in runner.param_schedulers],
                losses=[float(x) for x in
                        runner.message_hub.get_scalar('train/loss').data[0][-EPOCHS * STEPS:]])


def assert_equal(found, expected):
    for key in ('model', 'ema', 'optimizer'):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
    assert found['schedulers'] == expected['schedulers']
    assert found['losses'] == expected['losses']


@pytest.fixture(scope='module')
def coco(tmp_path_factory):
    return write_tiny_coco(tmp_path_factory.mktemp('data') / 'coco')


@pytest.fixture(scope='module')
def whole(coco, tmp_path_factory):
    """State at the end of a run that nobody stopped."""
    return state(train(config(coco, tmp_path_factory.mktemp('whole'))))


def test_random_numbers_matter(coco, whole, tmp_path):
    """So the tests below can fail."""
    other = state(train(config(coco, tmp_path, randomness=dict(seed=1))))
    assert other['losses'] != whole['losses']


@pytest.mark.parametrize('step', [3, 4, 6])
def test_a_run_that_is_killed_after_a_step_ends_as_one_that_is_not(coco, whole, tmp_path, step):
    cfg = config(coco, tmp_path)
    assert train(cfg, killed_after=step) is None
    runner = train(cfg, resume=True)
    assert runner.train_loop.iter == EPOCHS * STEPS
    assert_equal(state(runner), whole)


def test_a_run_that_averages_no_more_goes_on_from_the_trained_weights(coco, whole, tmp_path):
    cfg = config(coco, tmp_path)
    assert train(cfg, killed_after=3) is None
    cfg.custom_hooks = []
    torch.testing.assert_close(train(cfg, resume=True).model.state_dict(), whole['model'],
                               rtol=0, atol=0)


@pytest.mark.parametrize('workers, persistent', [(1, False), (2, True)])
def test_processes_that_load_data_change_nothing(coco, whole, tmp_path, workers, persistent):
    cfg = config(coco, tmp_path, workers, persistent)
    assert train(cfg, killed_after=3) is None
    assert_equal(state(train(cfg, resume=True)), whole)


def test_checkpoints_of_whole_epochs_resume_exactly(coco, whole, tmp_path):
    cfg = config(coco, tmp_path, by_epoch=True, validated=True)
    assert train(cfg, killed_after=6) is None
    assert_equal(state(train(cfg, resume=True)), whole)


def test_a_run_by_iterations_resumes_exactly(coco, tmp_path):
    def by_iterations(work_dir):
        cfg = config(coco, work_dir)
        cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=8)
        cfg.train_dataloader.sampler.type = 'InfiniteSampler'
        return cfg

    unbroken = state(train(by_iterations(tmp_path / 'whole')))
    cfg = by_iterations(tmp_path / 'killed')
    assert train(cfg, killed_after=5) is None
    assert_equal(state(train(cfg, resume=True)), unbroken)


def without_progress(cfg):
    path = f'{cfg.work_dir}/iter_3.pth'
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint.pop(PROGRESS)['batches_done'] == 3
    torch.save(checkpoint, path)


def larger_batches(cfg):
    cfg.train_dataloader.batch_size = 4


@pytest.mark.parametrize('change, words', [
    (without_progress, 'lacks the position'),
    (larger_batches, 'batch_size was 2 and is 4')])
def test_what_cannot_resume_exactly_resumes_with_a_warning(coco, tmp_path, capfd, change, words):
    cfg = config(coco, tmp_path, log_level='WARNING')
    assert train(cfg, killed_after=3) is None
    change(cfg)
    assert train(cfg, resume=True).train_loop.epoch == EPOCHS
    assert words in ''.join(capfd.readouterr())


def mixed(coco, work_dir, **changes):
    """A run that mixes images in its first epoch."""
    cfg = config(coco, work_dir, log_level='WARNING', **changes)
    light = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [
        *light[:2], dict(type='CachedMosaic', img_scale=(64, 64), max_cached_images=5), *light[2:]]
    cfg.custom_hooks.append(
        dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=light))
    return cfg


def test_a_run_resumes_exactly_once_it_mixes_no_images(coco, whole, tmp_path, capfd):
    loading = dict(num_workers=1, persistent=True)
    unbroken = state(train(mixed(coco, tmp_path / 'whole', **loading)))
    assert unbroken['losses'][:2] == whole['losses'][:2]  # the cache has four images
    assert unbroken['losses'][2] != whole['losses'][2]
    cfg = mixed(coco, tmp_path / 'killed', **loading)
    assert train(cfg, killed_after=6) is None
    assert_equal(state(train(cfg, resume=True)), unbroken)
    assert 'other mixed images' not in ''.join(capfd.readouterr())


def test_a_run_that_mixes_images_resumes_with_a_warning(coco, tmp_path, capfd):
    cfg = mixed(coco, tmp_path)
    assert train(cfg, killed_after=3) is None
    train(cfg, resume=True)
    assert 'other mixed images' in ''.join(capfd.readouterr())


def test_every_image_of_a_batch_draws_its_own_numbers_from_every_generator():
    def draw(key):
        return [(random.random(), np.random.rand(), torch.rand(1).item())
                for _ in SeededBatch([7, 7, 7], key)]

    first, again, other = draw((1, 2)), draw((1, 2)), draw((1, 3))
    assert first == again and len({x for image in first + other for x in image}) == 18
    assert SeededBatch([7, 8], (1, )) == [7, 8]
