"""A training as one sees it in a terminal: one line that moves, and one for each validation."""
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
from rich.progress import (BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn,
                           TimeRemainingColumn)

from .options import AP
from .runner import build_runner

WINDOW = 50  # steps whose losses are averaged
# Warnings of every start: one for each frozen parameter, and on mmengine's own old names.
ROUTINE = re.compile('is skipped since its requires_grad=False|will be deprecated in future')


class QuietRunner(Runner):
    """A runner whose terminal gets warnings alone; its log file gets all."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build the logger, and let its terminal show warnings alone."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.__stdout__)
                handler.setLevel(logging.WARNING)
                handler.addFilter(lambda record: not ROUTINE.search(record.getMessage()))
        return logger


class PrintsToLog(io.TextIOBase):
    """Where libraries print, as pycocotools: into the log, once there is one."""
    logger: Optional[MMLogger] = None

    def write(self, text: str) -> int:
        """Log the lines of a text."""
        for line in text.splitlines():
            if self.logger and line.strip():
                self.logger.info(line)
        return len(text)


class ProgressHook(Hook):
    """Show in a terminal how far a training is, its loss and its AP."""
    priority = 'VERY_LOW'

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.best = 0.

    def before_train(self, runner: Runner) -> None:
        """Begin the line."""
        self.task = self.progress.add_task(
            'starting', total=runner.max_iters, completed=runner.iter)

    def after_train_iter(self, runner: Runner, **kwargs: Any) -> None:
        """Move it."""
        self.progress.update(
            self.task, completed=runner.iter + 1,
            description=f'epoch {runner.epoch + 1}/{runner.max_epochs}  loss {loss(runner):.3f}' +
            (f'  AP {self.best:.3f}' if self.best else ''))

    def before_val_epoch(self, runner: Runner) -> None:
        """Say that the line stands still."""
        self.progress.update(self.task, description='validating')

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Write a line on the epoch."""
        found = metrics or {}
        is_better = found.get(AP, 0) > self.best
        self.best = max(self.best, found.get(AP, 0))
        values = ''.join(f'  {name} {found[key]:.3f}' for name, key in (
            ('AP', AP), ('AP50', f'{AP}_50')) if key in found)
        self.progress.console.print(
            f'epoch {runner.epoch}: loss {loss(runner):.3f}{values}' + ' (best)' * is_better,
            highlight=False)


def loss(runner: Runner) -> float:
    """Mean loss of the last steps."""
    return runner.message_hub.get_scalar('train/loss').mean(WINDOW)


@contextlib.contextmanager
def quiet_runner(cfg: Config) -> Iterator[Runner]:
    """Give a runner whose initialization and prints go into its log file while the block runs."""
    prints = PrintsToLog()
    with contextlib.redirect_stdout(prints):
        runner = build_runner(cfg, QuietRunner)
        prints.logger = runner.logger
        yield runner


def run_training(cfg: Config) -> Runner:
    """Train as a config says; a terminal shows how far it is, and anything else gets the log."""
    alone = cfg.get('launcher', 'none') == 'none' and 'runner_type' not in cfg
    if not alone or not sys.stdout.isatty():
        runner = build_runner(cfg)
        runner.train()
        return runner
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn('eta'), TimeRemainingColumn())
    console = Console(file=sys.__stdout__, markup=False)  # a path may hold [brackets]
    with quiet_runner(cfg) as runner:
        console.print(f'Training; the log is {os.path.relpath(runner.logger.log_file)}',
                      highlight=False, soft_wrap=True)
        with Progress(*columns, console=console, redirect_stdout=False,
                      redirect_stderr=False) as progress:
            runner.register_hook(ProgressHook(progress))
            runner.train()
    return runner
