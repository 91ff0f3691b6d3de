"""A signal to every process of a training, to its loading workers too.

SLURM and a terminal send it so. The training writes its step, ends, and resumes from the step as
if it had not been stopped.
"""
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS
from running import fork_session, free_port, run_tool, wait_for
from tiny import tiny_config, write_tiny_coco

from groupdetr_mmdet.checkpoints.preemption import INTERRUPTED_STATUS, SIGNALS, STOPPED_STATUS

STEP, PATIENCE = 2, 240  # seconds, for a machine that is busy


# Parts of the config, which the training imports


def wait_here(work_dir, place):
    """Tell the test that the training is here, once, and wait until a signal has come."""
    path = Path(work_dir, place)
    rank = os.environ.get('RANK', '0')
    if os.environ.get('WAIT_AT') == place:
        path.mkdir(exist_ok=True)
        (path / rank).touch()
        handler, end = signal.getsignal(signal.SIGTERM), time.time() + PATIENCE
        while handler.__self__.received is None and time.time() < end:
            time.sleep(0.01)


@HOOKS.register_module()
class WaitHook(Hook):
    def before_train_iter(self, runner, **kwargs):
        if runner.iter + 1 == STEP:
            wait_here(runner.work_dir, 'train')

    def before_val_iter(self, runner, batch_idx, **kwargs):
        if batch_idx == 1:
            wait_here(runner.work_dir, 'val')


@METRICS.register_module()
class WaitMetric(BaseMetric):
    """Waits in a pool of processes."""

    def __init__(self, work_dir):
        super().__init__()
        self.work_dir = work_dir

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        if os.environ.get('WAIT_AT') == 'metric':
            with torch.multiprocessing.get_context('fork').Pool(2) as pool:
                Path(self.work_dir, 'metric').mkdir(exist_ok=True)
                Path(self.work_dir, 'metric/0').touch()
                pool.map(time.sleep, [PATIENCE] * 2)
        return {}


@TRANSFORMS.register_module()
class Slow:
    """Takes a while, so that the training waits."""

    def __call__(self, results):
        time.sleep(0.05)
        return results


@HOOKS.register_module()
class StuckHook(Hook):
    """A step that never ends."""

    def after_train_iter(self, runner, **kwargs):
        while runner.iter + 1 == STEP:
            time.sleep(0.1)


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('signals')
    cfg = tiny_config(write_tiny_coco(folder / 'coco', num_val=16))
    cfg.custom_imports.imports.append('test_signals')
    for mode in ('train', 'val'):
        cfg[f'{mode}_dataloader'].update(num_workers=2, batch_size=1)
        cfg[f'{mode}_dataloader'].dataset.pipeline.insert(1, dict(type='Slow'))
    cfg.train_cfg.max_epochs = 1
    cfg.custom_hooks = [dict(type='WaitHook'), dict(type='EMAHook')]
    cfg.val_evaluator = [cfg.val_evaluator, dict(type='WaitMetric', work_dir='')]
    cfg.dump(folder / 'mine.py')
    return folder / 'mine.py'


def launch(words) -> int:
    """Fork two processes, and send signals on, as torchrun does; return the larger status."""
    ranks, port = [], free_port()
    for rank in '01':
        ranks.append(os.fork())
        if ranks[-1] == 0:
            os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE='2',
                              MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
            return run_tool('train', *words, '--launcher', 'pytorch')
    for number in SIGNALS:
        signal.signal(number, lambda number, _: [os.kill(pid, number) for pid in ranks])
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks)


class Training:
    """``groupdetr train`` in a process that is forked from this one, in a session of its own."""

    def __init__(self, config: Path, work_dir: Path, *more, processes=1, wait_at='') -> None:
        self.file = work_dir.with_suffix('.txt')
        words = [config, '--work-dir', work_dir, '--cfg-options',
                 f'val_evaluator.1.work_dir={work_dir}', *more]

        def run() -> int:
            os.environ['WAIT_AT'] = wait_at
            return run_tool('train', *words) if processes == 1 else launch(words)

        self.pid = fork_session(run, self.file)

    def wait_for(self, folder: Path, count: int) -> None:
        """Wait until so many processes are at a place."""
        end = time.time() + PATIENCE
        while len(list(folder.glob('*'))) < count:
            assert not os.waitpid(self.pid, os.WNOHANG)[0], self.file.read_text()
            assert time.time() < end, 'it does not come there'
            time.sleep(0.05)

    def end(self) -> int:
        """Wait for the status."""
        status = wait_for(self.pid, PATIENCE)
        assert status is not None, f'it hangs: {self.file.read_text()}'
        return status


def final_weights(work_dir: Path) -> dict:
    checkpoint = torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=False)
    return dict(checkpoint['state_dict'], **checkpoint['ema_state_dict'])


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    """Final weights of a training by its number of processes."""
    found = {}

    def train(processes):
        if processes not in found:
            work_dir = tmp_path_factory.mktemp('whole')
            assert Training(config, work_dir, processes=processes).end() == 0
            found[processes] = final_weights(work_dir)
        return found[processes]

    return train


@pytest.mark.slow
@pytest.mark.parametrize('number, place, processes, times', [
    ('SIGTERM', 'train', 1, 2),  # as `timeout` sends it
    ('SIGUSR1', 'val', 1, 1), ('SIGTERM', 'metric', 1, 1), ('SIGINT', 'train', 1, 1),
    ('SIGTERM', 'train', 2, 2), ('SIGINT', 'val', 2, 1)])
def test_a_signal_to_all_processes_keeps_the_step(config, whole, tmp_path, number, place,
                                                  processes, times):
    work_dir = tmp_path / 'work'
    training = Training(config, work_dir, processes=processes, wait_at=place)
    training.wait_for(work_dir / place, processes)
    for _ in range(times):
        os.killpg(training.pid, getattr(signal, number))
    status, output = training.end(), training.file.read_text()
    assert status == (INTERRUPTED_STATUS if number == 'SIGINT' else STOPPED_STATUS), output
    step = STEP if place == 'train' else 8 // processes
    stopped, = [line for line in output.splitlines() if 'Stopped by' in line]
    assert f'after step {step}: wrote {work_dir}' in stopped and '--resume' in stopped
    assert 'Traceback' not in output and 'lack of memory' not in output
    assert Training(config, work_dir, '--resume', processes=processes).end() == 0
    torch.testing.assert_close(final_weights(work_dir), whole(processes), rtol=0, atol=0)
    if place == 'train':  # the next regular checkpoint has replaced it
        assert not list(work_dir.glob('iter_*.pth'))


@pytest.mark.slow
def test_a_later_signal_ends_a_training_at_once_and_its_workers_with_it(config, tmp_path):
    cfg = Config.fromfile(config)
    cfg.custom_hooks.append(dict(type='StuckHook'))
    cfg.dump(tmp_path / 'mine.py')
    training = Training(tmp_path / 'mine.py', tmp_path / 'work', wait_at='train')
    training.wait_for(tmp_path / 'work/train', 1)
    for _ in range(2):
        os.killpg(training.pid, signal.SIGINT)
        time.sleep(1)
    assert training.end() == -signal.SIGINT
    with pytest.raises(ProcessLookupError):  # the workers end with it
        for _ in range(PATIENCE):
            os.killpg(training.pid, 0)
            time.sleep(1)


# Metrics that compute in a pool of processes, which SIGTERM ends


@pytest.mark.slow
@pytest.mark.parametrize('evaluator', [dict(use_mp_eval=True), dict(
    _delete_=True, type='VOCMetric', metric='mAP')], ids=['coco', 'voc'])
def test_a_metric_with_a_pool_of_processes_ends(evaluator, tiny_coco, tmp_path):
    cfg = tiny_config(tiny_coco)
    cfg.merge_from_dict({'train_cfg.max_epochs': 1, 'val_evaluator': evaluator})
    cfg.dump(tmp_path / 'mine.py')
    pid = fork_session(lambda: run_tool(
        'train', tmp_path / 'mine.py', '--work-dir', tmp_path / 'work'), tmp_path / 'output.txt')
    assert wait_for(pid, PATIENCE) == 0
