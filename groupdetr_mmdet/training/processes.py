"""Processes of a run and their launcher."""
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of prctl
RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK', 'LOCAL_RANK')


def launched_rank() -> int:
    """Return the rank that the launcher has set for this process, 0 without a launcher."""
    ranks = (os.environ.get(name, '') for name in RANKS)
    return next((int(rank) for rank in ranks if rank.isdigit()), 0)


def end_with_launcher() -> None:
    """Let the system send this process SIGTERM when its launcher ends; Linux only."""
    if not sys.platform.startswith('linux'):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the launcher has ended already
        os.kill(os.getpid(), signal.SIGTERM)
