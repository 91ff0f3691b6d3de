"""``torchrun``, without its traceback below a mistake that a process has told in a sentence."""
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

from .mistakes import MISTAKE, end_mistakes

if __name__ == '__main__':
    try:
        end_mistakes(main)
    except ChildFailedError as error:
        if all(failure.exitcode != MISTAKE for failure in error.failures.values()):
            raise
        sys.exit(MISTAKE)
