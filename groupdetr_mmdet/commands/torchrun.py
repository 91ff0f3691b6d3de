"""``torchrun``, without its traceback below what a process has told in a sentence.

On SIGTERM or SIGUSR1 it tells its processes to stop, which write a checkpoint, and ends with
their status 75; it gives them 30 seconds.
"""
import os
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from ..checkpoints.preemption import STOPPED_STATUS
from .mistakes import MISTAKE, end_mistakes

if __name__ == '__main__':
    if hasattr(signal, 'SIGUSR1'):
        signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        end_mistakes(main)
    except SignalException:
        sys.exit(STOPPED_STATUS)
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        told = statuses & {MISTAKE, STOPPED_STATUS}
        if not told:
            raise
        sys.exit(min(told))
