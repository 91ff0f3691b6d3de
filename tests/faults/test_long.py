"""Long ones, of processes that are killed, stopped or frozen: ``pytest -m long tests/faults``."""
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from running import free_port, run_tool
from tiny import tiny_config, write_tiny_coco

import groupdetr_mmdet.commands.train  # noqa: F401  so that a forked process has it
from groupdetr_mmdet.checkpoints.preemption import STOPPED_STATUS
from groupdetr_mmdet.checkpoints.reading import is_whole

pytestmark = [pytest.mark.long, pytest.mark.slow]
FORK = multiprocessing.get_context('fork')
ROOT = Path(__file__).parents[2]
LAUNCHER = [sys.executable, '-m', 'groupdetr_mmdet.commands.torchrun', '--nproc_per_node=2']


@pytest.fixture
def config(tmp_path):
    """A training with a checkpoint every second step, long enough to be interrupted."""
    cfg = tiny_config(write_tiny_coco(tmp_path / 'coco'))
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', interval=2, by_epoch=False, max_keep_ckpts=2)
    cfg.update(dict.fromkeys(('val_dataloader', 'val_evaluator', 'val_cfg')))
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=10)
    path = tmp_path / 'mine.py'
    cfg.dump(path)
    return path


def command(config, work_dir, *more, processes=1, **options):
    launcher = [sys.executable] if processes == 1 else [*LAUNCHER, f'--master_port={free_port()}']
    given = [f'{key}={value}' for key, value in options.items()]
    return [*map(str, [*launcher, ROOT / 'tools/train.py', config, '--work-dir', work_dir]),
            *(['--launcher', 'pytorch'] if processes > 1 else []), *more,
            *(['--cfg-options', *given] if given else [])]


def start(*args, **kwargs):
    return subprocess.Popen(
        command(*args, **kwargs), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)), start_new_session=True)


def wait_for(condition, seconds=120):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, 'it does not happen'
        time.sleep(0.05)


def final_weights(work_dir):
    path = (work_dir / 'last_checkpoint').read_text()
    return torch.load(path, weights_only=False)['state_dict']


def children(pid):
    found = subprocess.run(['pgrep', '-P', str(pid)], capture_output=True, text=True)
    return [int(x) for x in found.stdout.split()]


def is_alive(pid):
    try:
        return 'Z' not in Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except FileNotFoundError:
        return False


def train_here(config, work_dir, **options):
    """A training in a forked process, which saves the start of Python."""
    torch.set_num_threads(1)
    given = [f'{key}={value}' for key, value in options.items()]
    os._exit(run_tool('train', config, '--work-dir', work_dir, '--resume',
                      *(['--cfg-options', *given] if given else [])))


def fork(config, work_dir, **options):
    process = FORK.Process(target=train_here, args=(config, work_dir), kwargs=options)
    process.start()
    return process


def test_a_run_killed_at_50_random_moments_ends_as_one_that_was_not(config, tmp_path):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    options, start_time = {'train_cfg.max_epochs': 20}, time.time()
    process = fork(config, whole, **options)
    wait_for(lambda: list(whole.glob('iter_*.pth')))
    first, rng, resumed = time.time(), random.Random(0), set()
    process.join()
    assert process.exitcode == 0
    an_epoch = (time.time() - first) / 20
    for kill in range(50):
        process, before = fork(config, killed, **options), set(killed.glob('*.pth'))
        if kill % 2:  # as it starts, or after it has come further, however fast the machine is
            wait_for(lambda p=process, x=before: not p.is_alive() or {*killed.glob('*.pth')} - x)
        time.sleep(rng.uniform(0, an_epoch if kill % 2 else first - start_time))
        process.kill()
        process.join()
        checkpoints = list(killed.glob('*.pth'))
        resumed.update(x.name for x in checkpoints)
        assert all(map(is_whole, checkpoints))
    assert len(resumed) >= 20  # so many places in the training
    process = fork(config, killed, **options)
    process.join()
    assert process.exitcode == 0
    torch.testing.assert_close(final_weights(killed), final_weights(whole), rtol=0, atol=0)


@HOOKS.register_module()
class MemoryHook(Hook):
    """Write the memory of the process, in bytes, after every 1,000 steps."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if (runner.iter + 1) % 1000 == 0:
            pages = int(Path('/proc/self/statm').read_text().split()[1])
            with Path(runner.work_dir, 'memory').open('a') as file:
                file.write(f'{pages * resource.getpagesize()}\n')


def test_memory_is_flat_over_10000_steps(tmp_path):
    cfg = tiny_config(
        write_tiny_coco(tmp_path / 'coco', size=32), num_queries=4, num_query_groups=2, width=8,
        num_heads=2, dec_layers=1, base_channels=2, feedforward_channels=8)
    cfg.update(dict.fromkeys(('val_dataloader', 'val_evaluator', 'val_cfg')))
    cfg.train_cfg.max_epochs, cfg.custom_hooks = 2500, [dict(type='MemoryHook')]
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=100, max_keep_ckpts=1)
    cfg.default_hooks.logger.interval = 100
    cfg.dump(tmp_path / 'mine.py')
    process = fork(tmp_path / 'mine.py', tmp_path / 'work')
    process.join()
    assert process.exitcode == 0
    memory = [int(x) for x in (tmp_path / 'work/memory').read_text().split()]
    print(memory)
    assert len(memory) == 10 and memory[-1] < 1.03 * memory[0], memory


@pytest.mark.parametrize('to', ['launcher', 'one process', 'all processes'])
def test_two_processes_stop_together_and_continue(config, tmp_path, to):
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    assert start(config, whole, processes=2).wait() == 0
    process = start(config, stopped, processes=2)
    wait_for(lambda: list(stopped.glob('iter_*.pth')))
    if to == 'all processes':
        os.killpg(process.pid, signal.SIGTERM)
    else:
        os.kill(process.pid if to == 'launcher' else children(process.pid)[-1], signal.SIGTERM)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == STOPPED_STATUS, out
    assert out.count('Stopped by SIGTERM') == 1 and 'Traceback' not in out
    assert start(config, stopped, '--resume', processes=2).wait() == 0
    torch.testing.assert_close(final_weights(stopped), final_weights(whole), rtol=0, atol=0)


@pytest.mark.parametrize('killed', [False, True])
def test_processes_end_with_one_that_is_frozen_and_with_their_launcher(config, tmp_path, killed):
    work_dir = tmp_path / 'work'
    process = start(config, work_dir, processes=2, **{'env_cfg.dist_cfg.timeout': 15})
    wait_for(lambda: list(work_dir.glob('iter_*.pth')))
    ranks = children(process.pid)
    assert len(ranks) == 2
    if killed:
        process.kill()
    else:
        os.kill(ranks[-1], signal.SIGSTOP)
        out = process.communicate(timeout=120)[0]
        assert process.returncode == 2 and 'Another process of this run has ended or hangs' in out
    wait_for(lambda: not any(map(is_alive, ranks)), 60)


def test_a_broken_image_of_one_process_is_said_once(config, tmp_path):
    cfg = Config.fromfile(config)
    cfg.train_cfg.max_epochs = 1000
    cfg.dump(config)
    process = start(config, tmp_path / 'work', processes=2)
    wait_for(lambda: list((tmp_path / 'work').glob('iter_*.pth')))
    (tmp_path / 'coco/images/train_3.jpg').write_bytes(b'')
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert out.count('error: ') == 1 and 'train_3.jpg' in out and 'Traceback' not in out
