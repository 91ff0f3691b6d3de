"""``torchrun`` without its traceback after the error of a process.

On SIGTERM or SIGUSR1 it signals its processes, waits up to 30 seconds for their checkpoint, and
ends with their status 75.
"""
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from ..checkpoints.preemption import STOPPED_STATUS
from ..errors import ConfigError, first_line
from .errors import ERROR, FIRST_ERROR, INTERRUPTED, end_in_one_line


def run() -> None:
    """Run the processes; only the first process with an error prints it."""
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix='groupdetr-') as folder:
        os.environ[FIRST_ERROR] = str(Path(folder, 'reported'))
        try:
            main()
        except (ValueError, AssertionError) as error:
            raise ConfigError(f'The launcher refuses its arguments ({first_line(error)}): correct '
                              'GPUS, PORT, NNODES or NODE_RANK.') from error


if __name__ == '__main__':
    if hasattr(signal, 'SIGUSR1'):
        signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        end_in_one_line(run)
    except SignalException as stop:
        sys.exit(INTERRUPTED if stop.sigval == signal.SIGINT else STOPPED_STATUS)
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        reported = statuses & {ERROR, STOPPED_STATUS, INTERRUPTED}
        if not reported:
            raise
        sys.exit(min(reported))
