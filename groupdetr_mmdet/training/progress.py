"""Show a training in a terminal: a progress bar, and a line for each validation."""
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
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from .options import AP
from .runner import build_runner

WINDOW = 50  # steps whose losses are averaged
# Warnings at every start: one for each frozen parameter, and about mmengine's own old names
ROUTINE = re.compile('is skipped since its requires_grad=False|will be deprecated in future')


class QuietRunner(Runner):
    """``Runner`` whose terminal shows warnings only; the log file has everything."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build the logger."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.__stdout__)
                handler.setLevel(logging.WARNING)
                handler.addFilter(lambda record: not ROUTINE.search(record.getMessage()))
        return logger


class PrintsToLog(io.TextIOBase):
    """Stream that logs what libraries print, such as pycocotools."""
    logger: Optional[MMLogger] = None

    def write(self, text: str) -> int:
        """Log the lines of a text."""
        for line in text.splitlines():
            if self.logger and line.strip():
                self.logger.info(line)
        return len(text)


class ProgressHook(Hook):
    """Show epoch, loss and AP of a training in a progress bar."""
    priority = 'VERY_LOW'

    def __init__(self, progress: Progress) -> None:
        self.progress, self.best = progress, 0.

    def before_train(self, runner: Runner) -> None:
        """Start the bar."""
        self.task = self.progress.add_task(
            'starting', total=runner.max_iters, completed=runner.iter)

    def after_train_iter(self, runner: Runner, **kwargs: Any) -> None:
        """Move the bar."""
        ap = f'  AP {self.best:.3f}' if self.best else ''
        self.progress.update(self.task, completed=runner.iter + 1, description=(
            f'epoch {runner.epoch + 1}/{runner.max_epochs}  loss {loss(runner):.3f}{ap}'))

    def before_val_epoch(self, runner: Runner) -> None:
        """Name what runs now."""
        self.progress.update(self.task, description='validating')

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Print a line for the epoch."""
        found = metrics or {}
        best = ' (best)' if found.get(AP, 0) > self.best else ''
        self.best = max(self.best, found.get(AP, 0))
        values = ''.join(f'  {name} {found[key]:.3f}' for name, key in (
            ('AP', AP), ('AP50', f'{AP}_50')) if key in found)
        self.progress.console.print(
            f'epoch {runner.epoch}: loss {loss(runner):.3f}{values}{best}', highlight=False)


def loss(runner: Runner) -> float:
    """Return the mean loss of the last steps."""
    return runner.message_hub.get_scalar('train/loss').mean(WINDOW)


@contextlib.contextmanager
def quiet_runner(cfg: Config) -> Iterator[Runner]:
    """Build a runner; what is printed in the block goes into its log file."""
    with contextlib.redirect_stdout(PrintsToLog()) as prints:
        runner = build_runner(cfg, QuietRunner)
        prints.logger = runner.logger
        yield runner


def run_training(cfg: Config) -> Runner:
    """Train by a config, in a terminal with a progress bar instead of the log."""
    one_process = cfg.get('launcher', 'none') == 'none' and 'runner_type' not in cfg
    if not (one_process and sys.stdout.isatty()):
        runner = build_runner(cfg)
        runner.train()
        return runner
    console = Console(file=sys.__stdout__, markup=False)  # a path may hold [brackets]
    with quiet_runner(cfg) as runner:
        console.print(f'Training; the log is {os.path.relpath(runner.logger.log_file)}',
                      highlight=False, soft_wrap=True)
        with Progress('{task.description}', BarColumn(), '{task.completed}/{task.total}',
                      TimeElapsedColumn(), 'eta', TimeRemainingColumn(), console=console,
                      redirect_stdout=False, redirect_stderr=False) as progress:
            runner.register_hook(ProgressHook(progress))
            runner.train()
    return runner
