"""``torchrun``, without its traceback below a mistake that a process has told in a sentence."""
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except ChildFailedError as error:
        if all(failure.exitcode != 2 for failure in error.failures.values()):
            raise
        sys.exit(2)
