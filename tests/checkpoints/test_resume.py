"""A run that is killed at any moment resumes as if it had never stopped.

Runs are processes that kill themselves (SIGKILL) before the n-th operation on a checkpoint file,
for every n, or that have written half of one.
"""
import json
import multiprocessing
import os
import shutil
import signal
import stat
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import torch._dynamo  # the optimizer imports it, which takes a second
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import CheckpointLoader, Runner
from running import free_port
from torch.utils.data import TensorDataset

import groupdetr_mmdet  # noqa: F401
from groupdetr_mmdet.checkpoints.resume import (POINTER, is_whole, latest_whole_checkpoint,
                                                repair_pointer)
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.io import INCOMPLETE
from groupdetr_mmdet.training.runner import use_gloo

EPOCHS, ITERS = 2, 4
BATCH_SIZE = 4
OPTIONS = dict(max_keep_ckpts=1, save_best='error', rule='less')

PROCESSES = multiprocessing.get_context('forkserver')


@pytest.fixture(scope='module', autouse=True)
def fork_server():
    """Processes are forked from one that has imported this module, and so start at once."""
    PROCESSES.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join(sys.path))
        forkserver.ensure_running()


# The run


def points():
    """Points of a line with noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH_SIZE * ITERS, 3, generator=generator)
    return TensorDataset(x, x.sum(1) + torch.randn(len(x), generator=generator))


class Line(BaseModel):
    """Linear regression."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, x, y, mode):
        error = (self.linear(x).squeeze(1) - y)**2
        return dict(loss=error.mean()) if mode == 'loss' else [error]


class MeanError(BaseMetric):
    """Mean of the errors, and the same with the other sign."""

    def process(self, data_batch, data_samples):
        self.results += torch.cat(data_samples).tolist()

    def compute_metrics(self, results):
        error = sum(results) / len(results)
        return dict(error=error, accuracy=-error)


@HOOKS.register_module()
class Diary(Hook):
    """Writes epoch, iteration, learning rate and loss of each iteration to a file."""

    def __init__(self, path):
        self.path = Path(path)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if get_rank() == 0:
            line = [runner.epoch, runner.iter, runner.optim_wrapper.get_lr()['lr'][0],
                    outputs['loss'].item()]
            with self.path.open('a') as file:
                file.write(json.dumps(line) + '\n')


def build(work_dir, resume=False, load_from=None, by_epoch=True, custom_hooks=(),
          launcher='none', checkpoint_by_epoch=None, seed=1, **checkpoint):
    """Runner of a training; ``checkpoint`` are arguments of the checkpoint hook."""
    torch.manual_seed(0)  # the model is built before the runner sets its seed
    if checkpoint_by_epoch is None:
        checkpoint_by_epoch = by_epoch
    checkpoint = dict(dict(type='AtomicCheckpointHook', interval=1, by_epoch=checkpoint_by_epoch),
                      **checkpoint)
    loader = dict(batch_size=BATCH_SIZE, num_workers=0, dataset=points(),
                  collate_fn=dict(type='default_collate'))
    cfg = Config(dict(launcher=launcher))
    if launcher != 'none':
        use_gloo(cfg, dict(backend='gloo'))
    return Runner(
        cfg=cfg,
        model=Line(),
        work_dir=str(work_dir),
        experiment_name=str(time.time_ns()),
        train_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=True)),
        val_dataloader=dict(loader, sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=(dict(by_epoch=True, max_epochs=EPOCHS) if by_epoch else
                   dict(by_epoch=False, max_iters=EPOCHS * ITERS, val_interval=ITERS)),
        val_cfg=dict(),
        val_evaluator=Evaluator(MeanError()),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6),
            dict(type='MultiStepLR', milestones=[1], by_epoch=True)],
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[Diary(diary_of(work_dir)), *custom_hooks],
        resume=resume,
        load_from=load_from,
        launcher=launcher,
        log_level='WARNING',
        randomness=dict(seed=seed))


def diary_of(work_dir):
    return Path(work_dir).with_suffix('.jsonl')


def read_diary(work_dir):
    return [json.loads(line) for line in diary_of(work_dir).read_text().splitlines()]


# The kill


def kill_before(n, name=''):
    """Kill this process before the n-th operation on a checkpoint or on the pointer to it.

    Operations are to open for writing, to flush (where half of the content is lost), to rename
    and to remove; those on files whose name has ``name`` in it count.
    """
    count, path = 0, ''

    def count_down():
        nonlocal count
        count += is_checkpoint(path) and name in os.path.basename(path)
        return count == n

    def watch(event, args):
        nonlocal path
        writes = event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wa+')
        if writes or event in ('os.rename', 'os.remove'):
            path = str(args[0])
            if count_down():
                os.kill(os.getpid(), signal.SIGKILL)

    def flush(file, fsync=os.fsync):
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and count_down():
            os.ftruncate(file, status.st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    sys.addaudithook(watch)
    os.fsync = flush


def is_checkpoint(path):
    return os.path.basename(path).startswith((POINTER, 'epoch_', 'iter_', 'best_', 'state_'))


HALF = 2  # the operation at which half of a file is written


def train(work_dir, killed_before=None, environ=(), **kwargs):
    torch.set_num_threads(1)
    os.environ.update(environ)
    if killed_before:
        kill_before(*killed_before)
    build(work_dir, **kwargs).train()


def start(*args, **kwargs):
    process = PROCESSES.Process(target=train, args=args, kwargs=kwargs)
    process.start()
    return process


def finish(process):
    process.join(60)
    assert process.exitcode is not None, 'the run hangs'
    return process.exitcode


def run(*args, **kwargs):
    """Exit status of a training in a process of its own."""
    return finish(start(*args, **kwargs))


# The comparison


def checkpoints(folder):
    return sorted(path.name for path in Path(folder).iterdir()
                  if path.is_file() and is_checkpoint(path))


def load(checkpoint):
    return CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu', logger='silent')


def assert_same_run(work_dir, unbroken):
    """Same losses and rates in each iteration, run once or twice; same state at the end."""
    diary, expected = read_diary(work_dir), read_diary(unbroken)
    assert all(line in expected for line in diary)
    assert {line[1] for line in diary} == {line[1] for line in expected}
    resumed, whole = (load(latest_whole_checkpoint(x)) for x in (work_dir, unbroken))
    for key in {'state_dict', 'optimizer', 'ema_state_dict'} & set(whole):
        torch.testing.assert_close(resumed[key], whole[key], rtol=0, atol=0)
    assert resumed['param_schedulers'] == whole['param_schedulers']
    assert all(resumed['meta'][key] == whole['meta'][key] for key in ('epoch', 'iter'))


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    """Work directory of a run that nobody killed."""
    work_dir = tmp_path_factory.mktemp('unbroken') / 'run'
    assert run(work_dir, **OPTIONS) == 0
    assert checkpoints(work_dir) == ['best_error_epoch_2.pth', 'epoch_2.pth', POINTER]
    assert len(read_diary(work_dir)) == EPOCHS * ITERS
    return work_dir


# Kills


@pytest.mark.slow
def test_a_run_resumes_from_a_kill_before_any_operation(tmp_path, unbroken):
    had_best = False
    for n in range(1, 100):
        work_dir = tmp_path / str(n)
        status = run(work_dir, killed_before=(n, ), **OPTIONS)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        killed_at = len(read_diary(work_dir))
        last = latest_whole_checkpoint(work_dir)
        resumed_at = load(last)['meta']['iter'] if last else 0
        assert killed_at - resumed_at <= ITERS
        best = list(work_dir.glob('best_*.pth'))
        assert all(map(is_whole, best)) and (best or not had_best)
        had_best = bool(best)

        assert run(work_dir, resume=True, **OPTIONS) == 0
        rerun = [line[1] for line in read_diary(work_dir)[killed_at:]]
        assert rerun == list(range(resumed_at, EPOCHS * ITERS))
        assert_same_run(work_dir, unbroken)
        extra = set(checkpoints(work_dir)) - set(checkpoints(unbroken))
        assert extra <= {'best_error_epoch_1.pth'}
    assert n > EPOCHS * 10


def test_the_parent_hook_does_not_survive_this(tmp_path):
    """So the test above can fail."""
    work_dir = tmp_path / 'run'
    options = dict(type='CheckpointHook', max_keep_ckpts=1)
    status = run(work_dir, killed_before=(1, 'epoch_2'), **options)
    assert status == -signal.SIGKILL
    assert latest_whole_checkpoint(work_dir) is None
    with pytest.raises(ConfigError, match=r'epoch_1.pth, which is missing .* remove last_check'):
        build(work_dir, resume=True).train()


SETTINGS = {  # the half-written file, and arguments of `build`
    'out_dir': ('epoch_2', dict(out_dir='elsewhere', max_keep_ckpts=1)),
    'ema': ('epoch_2', dict(custom_hooks=[dict(type='EMAHook')], save_best='error', rule='less')),
    'file name': ('state_2', dict(filename_tmpl='state_{}.ckpt', max_keep_ckpts=1)),
    'iterations': ('iter_6', dict(by_epoch=False, interval=3, max_keep_ckpts=1)),
    'two best': ('epoch_2', dict(save_best=['error', 'accuracy'], rule=['less', 'greater'])),
}


@pytest.mark.parametrize('name', SETTINGS)
def test_a_run_with_other_settings_resumes(tmp_path, name):
    file, options = SETTINGS[name]
    if 'out_dir' in options:
        options = dict(options, out_dir=str(tmp_path / options['out_dir']))
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert run(whole, **options) == 0
    assert run(killed, killed_before=(HALF, file), **options) == -signal.SIGKILL
    assert read_diary(killed)
    assert run(killed, resume=True, **options) == 0
    assert_same_run(killed, whole)
    assert len(read_diary(killed)) > EPOCHS * ITERS  # what the half checkpoint held was rerun
    assert not list(tmp_path.rglob(f'*{INCOMPLETE}'))


def test_two_processes_resume(tmp_path):
    def run_both(work_dir, **kwargs):
        environ = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), WORLD_SIZE='2')
        ranks = [start(work_dir, environ=dict(environ, RANK=str(i), LOCAL_RANK=str(i)),
                       launcher='pytorch', **OPTIONS, **kwargs) for i in range(2)]
        return [finish(rank) for rank in ranks]

    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    assert run_both(whole) == [0, 0]
    assert all(run_both(killed, killed_before=(HALF, 'epoch_2')))
    assert run_both(killed, resume=True) == [0, 0]
    assert len(read_diary(whole)) == EPOCHS * ITERS // 2
    assert_same_run(killed, whole)
    assert checkpoints(killed) == checkpoints(whole)


def test_a_run_without_a_seed_resumes_with_the_one_it_drew(tmp_path):
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    build(whole, seed=None).train()
    build(resumed, resume=True, load_from=str(whole / 'epoch_1.pth'), seed=None).train()
    assert read_diary(resumed) == read_diary(whole)[ITERS:]


# What the parent hook, a full disk or a person left


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[data.index(b'linear.weight')] ^= 1
    path.write_bytes(data)


DAMAGES = dict(removed=Path.unlink, flipped=flip_a_byte,
               cut=lambda path: os.truncate(path, path.stat().st_size // 2))


@pytest.fixture
def finished(tmp_path):
    """Work directory of a finished run that kept both checkpoints."""
    assert run(tmp_path / 'run', save_best='error', rule='less') == 0
    return tmp_path / 'run'


@pytest.mark.parametrize('damage', DAMAGES.values(), ids=DAMAGES)
def test_a_lost_checkpoint_is_passed_over_with_one_line(finished, unbroken, damage):
    damage(finished / 'epoch_2.pth')
    assert latest_whole_checkpoint(finished) == str(finished / 'epoch_1.pth')
    killed_at = len(read_diary(finished))
    assert run(finished, resume=True, save_best='error', rule='less') == 0
    log = ''.join(path.read_text() for path in finished.rglob('*.log'))
    assert log.count(f'resuming from {finished}/epoch_1.pth') == 1
    assert read_diary(finished)[killed_at][1] == ITERS
    assert_same_run(finished, unbroken)


def test_the_pointer_is_followed_unless_it_is_lost_or_a_checkpoint_is_younger(finished):
    pointer, (first, second) = finished / POINTER, sorted(map(str, finished.glob('epoch_*.pth')))
    for content in ('', '/elsewhere/epoch_2.pth'):
        pointer.write_text(content)
        assert latest_whole_checkpoint(finished) == second
        repair_pointer(finished)
        assert pointer.read_text() == second
    pointer.write_text(first)
    assert latest_whole_checkpoint(finished) == first
    younger = pointer.stat().st_mtime_ns + 1
    os.utime(second, ns=(younger, younger))
    assert latest_whole_checkpoint(finished) == second


def test_a_copied_directory_has_its_own_checkpoints(finished):
    copy = Path(shutil.copytree(finished, finished.with_name('copy')))
    assert latest_whole_checkpoint(copy) == str(copy / 'epoch_2.pth')
    repair_pointer(copy)
    assert (copy / POINTER).read_text() == str(copy / 'epoch_2.pth')


def test_other_files_are_no_checkpoints(finished):
    (finished / POINTER).unlink()
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        (finished / name).unlink()
    torch.save(dict(state_dict={}), finished / 'pretrained.pth')
    shutil.copy(finished / 'best_error_epoch_2.pth', finished / f'epoch_3.pth{INCOMPLETE}')
    # Without an optimizer, but better than to train from the start.
    assert latest_whole_checkpoint(finished).endswith('best_error_epoch_2.pth')
    (finished / 'best_error_epoch_2.pth').unlink()
    assert latest_whole_checkpoint(finished) is None
    assert latest_whole_checkpoint(finished / 'missing') is None


@pytest.mark.parametrize('options', [
    dict(),
    dict(max_keep_ckpts=1), dict(interval=2, save_last=False),
    dict(max_keep_ckpts=2, save_best=['error', 'accuracy'], rule=['less', 'greater']),
    dict(interval=3, checkpoint_by_epoch=False, max_keep_ckpts=2),
    dict(save_best='auto', rule='less', save_optimizer=False),
    dict(backend_args=dict(backend='local'), published_keys=['state_dict']),
], ids=lambda options: '-'.join(options) or 'defaults')
def test_a_whole_run_leaves_what_the_parent_leaves(tmp_path, options):
    def left_by(hook):
        work_dir = tmp_path / hook
        build(work_dir, type=hook, **options).train()
        names = [name.split('-')[0] for name in checkpoints(work_dir)]  # without the checksum
        return names, Path((work_dir / POINTER).read_text()).name

    assert left_by('AtomicCheckpointHook') == left_by('CheckpointHook')


@pytest.mark.parametrize(('metrics', 'best'), [
    (dict(error=1., accuracy=.5), ['best_accuracy_epoch_1.pth']), (dict(error=1.), []),
    ({'coco_panoptic/PQ': 1.}, ['best_coco_panoptic_PQ_epoch_1.pth']),
    ({'coco/a_precision': .1, 'coco/bbox_mAP': .5}, ['best_coco_bbox_mAP_epoch_1.pth'])])
def test_auto_follows_the_first_metric_of_all_classes_that_has_a_rule(tmp_path, monkeypatch,
                                                                      metrics, best):
    monkeypatch.setattr(MeanError, 'compute_metrics', lambda self, results: metrics)
    build(tmp_path / 'run', save_best='auto').train()
    assert [name for name in checkpoints(tmp_path / 'run') if name.startswith('best')] == best
