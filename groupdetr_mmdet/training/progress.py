"""Show a run in a terminal: a progress bar, and a line for each validation."""
import contextlib
import io
import logging
import os
import re
import sys
from typing import Any, Dict, Iterator, Optional

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from .options import AP
from .runner import build_runner

WINDOW = 50  # steps to average the loss over
# Warnings at every start: for each frozen parameter, and of deprecated names in mmengine
ROUTINE_WARNINGS = re.compile(
    'is skipped since its requires_grad=False|will be deprecated in future')
LIBRARIES = {'groupdetr_mmdet', 'mmengine', 'mmcv', 'mmdet', 'pycocotools', 'torch'}


class QuietRunner(Runner):
    """``Runner`` that logs warnings to the terminal, and everything to the log file."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build the logger, which shows warnings above the progress bar."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stdout.shown)
                handler.setLevel(logging.WARNING)
                handler.addFilter(lambda record: not ROUTINE_WARNINGS.search(record.getMessage()))
        return logger


class Prints(io.TextIOBase):
    """Stream that shows what the user's code prints, and logs what libraries print."""
    logger: Optional[MMLogger] = None

    def __init__(self, console: Console) -> None:
        self.shown = FileProxy(console, console.file)

    def write(self, text: str) -> int:
        """Show or log a text, depending on the module that prints it."""
        module = sys._getframe(1).f_globals.get('__name__', '')
        if module.partition('.')[0] not in LIBRARIES:
            return self.shown.write(text)
        for line in text.splitlines():
            if self.logger and line.strip():
                self.logger.info(line)
        return len(text)


class ProgressHook(Hook):
    """Show epoch, loss and AP of a run in progress bars."""
    priority = 'VERY_LOW'

    def __init__(self, progress: Progress) -> None:
        self.progress, self.best = progress, 0.

    def before_train(self, runner: Runner) -> None:
        """Start the bar."""
        self.task = self.progress.add_task(
            'starting', total=runner.max_iters, completed=runner.iter)

    def after_train_iter(self, runner: Runner, **kwargs: Any) -> None:
        """Advance the bar."""
        ap = f'  AP {self.best:.3f}' if self.best else ''
        self.progress.update(self.task, completed=runner.iter + 1, description=(
            f'epoch {runner.epoch + 1}/{runner.max_epochs}  loss {loss(runner):.3f}{ap}'))

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        if mode != 'train':
            what, loop = dict(val=('validating', runner._val_loop),
                              test=('testing', runner._test_loop))[mode]
            self.evaluation = self.progress.add_task(what, total=len(loop.dataloader))

    def _after_iter(self, runner: Runner, *args: Any, mode: str = 'train', **kwargs: Any) -> None:
        if mode != 'train':
            self.progress.advance(self.evaluation)

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Print a line with loss and AP."""
        self.progress.remove_task(self.evaluation)
        found = metrics or {}
        best = ' (best)' if found.get(AP, 0) > self.best else ''
        self.best = max(self.best, found.get(AP, 0))
        values = ''.join(f'  {name} {found[key]:.3f}' for name, key in (
            ('AP', AP), ('AP50', f'{AP}_50')) if key in found)
        # The epoch of an iteration-based run stays 0
        place = f'epoch {runner.epoch}' if runner.epoch else f'iteration {runner.iter}'
        self.progress.console.print(f'{place}: loss {loss(runner):.3f}{values}{best}')


def loss(runner: Runner) -> float:
    """Return the mean loss of the last ``WINDOW`` steps."""
    return runner.message_hub.get_scalar('train/loss').mean(WINDOW)


def plain_console() -> Console:
    """Return a console without markup, for the terminal of the process."""
    return Console(file=sys.__stdout__, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def quiet_runner(cfg: Config, console: Optional[Console] = None) -> Iterator[Runner]:
    """Build a runner; inside the block, prints of libraries go into its log file."""
    with contextlib.redirect_stdout(Prints(console or plain_console())) as prints:
        runner = build_runner(cfg, QuietRunner)
        prints.logger = runner.logger
        yield runner
        prints.shown.flush()


@contextlib.contextmanager
def shown_runner(cfg: Config, doing: str) -> Iterator[Runner]:
    """Build a runner; a terminal shows progress bars instead of the log."""
    one_process = cfg.get('launcher', 'none') == 'none' and 'runner_type' not in cfg
    if not (one_process and sys.stdout.isatty()):
        yield build_runner(cfg)
        return
    console = plain_console()
    with quiet_runner(cfg, console) as runner:
        console.print(f'{doing}; the log is {os.path.relpath(runner.logger.log_file)}')
        with Progress('{task.description}', BarColumn(), '{task.completed}/{task.total}',
                      TimeElapsedColumn(), 'eta', TimeRemainingColumn(), console=console,
                      redirect_stdout=False, redirect_stderr=sys.stderr.isatty()) as progress:
            runner.register_hook(ProgressHook(progress))
            yield runner


def run_training(cfg: Config) -> Runner:
    """Train by a config, and return the runner."""
    with shown_runner(cfg, 'Training') as runner:
        runner.train()
    return runner
