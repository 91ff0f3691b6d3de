"""A cluster that wants its machine back sends a signal: the run writes a checkpoint and ends."""
import signal
import sys
import threading
from types import FrameType
from typing import Any, Dict, Optional

import torch
from mmengine.dist import all_reduce, barrier, is_distributed, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from .resume import AtomicCheckpointHook

STOPPED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: start it again
SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name)]


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM or SIGUSR1, finish the step, write a checkpoint and end with status 75.

    All processes of a run end after the same step, also if one alone got the signal. A second
    signal ends a process at once. In a validation the run ends after the batch, and does not
    repeat the validation. It needs an ``AtomicCheckpointHook``.
    """
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.received: Optional[int] = None
        self._before: Dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Listen for the signals, where Python can: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def after_train(self, runner: Runner) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Optional[FrameType]) -> None:
        self.received = number
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)

    def after_train_iter(self, runner: Runner, **kwargs: Any) -> None:
        """End the run after this step if any process was told so."""
        self._end_if_told(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, **kwargs: Any) -> None:
        """End the run after this batch; processes may have different numbers of batches."""
        if is_distributed() or self.received is None:
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):  # a validation runs with the averaged weights
                hook.after_val_epoch(runner)
        self._end_if_told(runner, runner.iter)  # which counts the last step already

    def _end_if_told(self, runner: Runner, step: int) -> None:
        told = torch.tensor(self.received or 0)
        all_reduce(told, 'max')
        if not told:
            return
        saver = next((x for x in runner.hooks if isinstance(x, AtomicCheckpointHook)), None)
        path = saver.save_now(runner, step) if saver else None
        barrier()
        if is_main_process():
            name = signal.Signals(int(told)).name
            kept = f'wrote {path}' if path else 'there is no AtomicCheckpointHook to keep it'
            print(f'Stopped by {name} after step {step}: {kept}. Run the same command with '
                  '--resume to continue.', file=sys.stderr, flush=True)
        sys.exit(STOPPED_STATUS)
