"""Stop a training on a signal: finish the step, write a checkpoint, end.

Slurm (``scancel``, preemption, a time limit), ``timeout``, containers and Ctrl+C signal every
process of a run. Loading workers ignore the signal until the checkpoint is written.
"""
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Callable, Iterator, Optional

import torch
from mmengine.dist import all_reduce, barrier, is_distributed, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from .resume import AtomicCheckpointHook

STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: start the command again
INTERRUPTED_STATUS = 130  # as shells report Ctrl+C
SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGUSR1', 'SIGINT')
           if hasattr(signal, name)]
# Seconds in which a second signal is ignored: `timeout` sends its signal twice, and a launcher
# forwards it to processes that have received it.
REPEATED, REPEATED_BY_LAUNCHER = 0.5, 5.
BATCHES_BETWEEN_CHECKS = 5  # of a validation with several processes


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM, SIGUSR1 or Ctrl+C, finish the step, write a checkpoint and end.

    The status is 75, or 130 after Ctrl+C. All processes of a run end after the same step, even if
    only one received the signal. A second signal ends a process at once. A validation ends after
    a batch, or at once while metrics are computed, and is not repeated.
    """
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._since = 0.
        self._before: dict = {}

    def before_train(self, runner: Runner) -> None:
        """Install the signal handlers, which Python allows in the main thread only."""
        self._runner = runner
        reset_in_children()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def after_train(self, runner: Runner) -> None:
        """Restore the signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: Optional[FrameType]) -> None:
        """Record the first signal; end the process at a later signal."""
        if self.received is None:
            self.received, self._since = number, time.monotonic()
            if number == signal.SIGINT and is_main_process():
                os.write(2, b'\nCtrl+C: writing a checkpoint after this step. Press it again to '
                         b'end at once, without a checkpoint.\n')
            if computes_metrics(frame) and not is_distributed():
                # The signal may have ended workers of the metric's pool, for which the training
                # would wait for ever. Its state is the state after the last step.
                self._end(self._runner, self._runner.iter, in_validation=True)
        elif time.monotonic() - self._since > (
                REPEATED_BY_LAUNCHER if is_distributed() else REPEATED):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def after_train_iter(self, runner: Runner, **kwargs: Any) -> None:
        """End the run after this step if any process received a signal."""
        self._end_if_signaled(runner, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Find the number of validation batches that every process has."""
        batches = torch.tensor(len(runner.val_dataloader))
        all_reduce(batches, 'min')
        self._common_batches = int(batches)

    def after_val_iter(self, runner: Runner, batch_idx: int, **kwargs: Any) -> None:
        """End the run after this batch; several processes agree after some batches."""
        if not is_distributed() or (
                batch_idx % BATCHES_BETWEEN_CHECKS == 0 and batch_idx < self._common_batches):
            self._end_if_signaled(runner, runner.iter, in_validation=True)  # iter counts the step

    def _end_if_signaled(self, runner: Runner, step: int, in_validation: bool = False) -> None:
        received = torch.tensor(self.received or 0)
        all_reduce(received, 'max')
        if received:
            self.received = int(received)
            self._end(runner, step, in_validation)

    def _end(self, runner: Runner, step: int, in_validation: bool) -> None:
        for hook in runner.hooks if in_validation else ():
            if isinstance(hook, EMAHook):  # a validation runs with the averaged weights
                hook.after_val_epoch(runner)
        saver = next((x for x in runner.hooks if isinstance(x, AtomicCheckpointHook)), None)
        path = saver.save_now(runner, step) if saver else None
        barrier()
        if is_main_process():
            kept = f'wrote {path}' if path else 'no AtomicCheckpointHook writes a checkpoint'
            print(f'Stopped by {signal.Signals(self.received).name} after step {step}: {kept}. '
                  'Run the same command with --resume to continue.', file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED_STATUS if self.received == signal.SIGINT else STOPPED_STATUS)


@functools.cache
def reset_in_children() -> None:
    """Restore default signal handlers in forked processes, such as a metric's pool.

    With the training's handler, ``Pool.terminate`` would wait for them for ever.
    """
    before = threading.local()

    def block() -> None:  # no signal between fork and reset
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    def reset() -> None:
        for number in SIGNALS:
            if isinstance(getattr(signal.getsignal(number), '__self__', None), PreemptionHook):
                # Ctrl+C also reaches the training, which ends its processes.
                signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else
                              signal.SIG_DFL)
        restore()

    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(before=block, after_in_parent=restore, after_in_child=reset)


def computes_metrics(frame: Optional[FrameType]) -> bool:
    """Return whether a frame is inside the computation of metrics."""
    while frame is not None and not (frame.f_code.co_name == 'evaluate' and
                                     isinstance(frame.f_locals.get('self'), Evaluator)):
        frame = frame.f_back
    return frame is not None


# Loading workers


def shield_workers(runner: Runner) -> None:
    """Let the loading workers of a runner ignore the signals; Linux only."""
    build = runner.build_dataloader

    @functools.wraps(build)
    def build_shielded(*args: Any, **kwargs: Any) -> DataLoader:
        loader = build(*args, **kwargs)
        make_workers = loader._get_iterator

        def make_shielded() -> Iterator:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # workers inherit it
            try:
                return make_workers()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

        loader._get_iterator = make_shielded
        loader.worker_init_fn = functools.partial(start_worker, loader.worker_init_fn)
        return loader

    if hasattr(signal, 'sigtimedwait'):
        runner.build_dataloader = build_shielded


def start_worker(start: Optional[Callable], worker_id: int) -> None:
    """Initialize a worker that ignores signals except its parent's."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if start is not None:
        start(worker_id)


def end_with_parent() -> None:
    """End this process on a signal of its parent, or when the parent has ended.

    Otherwise workers outlive a killed run by 5 seconds, and keep the lock of its work directory.
    """
    parent, forked_by, sender = multiprocessing.parent_process().pid, os.getppid(), None
    while sender != parent and os.getppid() == forked_by:
        sender = getattr(signal.sigtimedwait(SIGNALS, 0.5), 'si_pid', None)
    os._exit(0)
