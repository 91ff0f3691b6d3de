"""The processes of a run: which one this is, that it ends with its launcher, one run a folder."""
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Optional, Union

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from .errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None

LOCK = '.groupdetr.lock'
HEARTBEAT = 30.  # seconds between signs of life
SILENCE = 300.  # seconds without one after which a run of another machine is taken for dead
PR_SET_PDEATHSIG = 1
RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK', 'LOCAL_RANK')


def launched_rank() -> int:
    """Number of this process among those of the run, as its launcher says, 0 without one."""
    ranks = (os.environ.get(name, '') for name in RANKS)
    return next((int(rank) for rank in ranks if rank.isdigit()), 0)


def check_environment() -> None:
    """Check the numbers by which a launcher says which process this is; mmengine reads them too.

    Raises:
        ConfigError: If one is no number.
    """
    for name in (*RANKS, 'WORLD_SIZE'):
        value = os.environ.get(name, '0')
        if not value.isdigit():
            raise ConfigError(f'{name}={value} in the environment must be a number, as launchers '
                              f'set it: run unset {name}.')


def unwrapped(model: nn.Module) -> nn.Module:
    """The detector inside what shares it among processes, or detects in several views."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def end_with_parent() -> None:
    """Let the system end this process when the launcher that started it is gone.

    It is sent SIGTERM. Linux only.
    """
    if not sys.platform.startswith('linux'):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has gone in between
        os.kill(os.getpid(), signal.SIGTERM)


class WorkDirLock:
    """One training at a time in a work directory.

    The system gives the lock of a process back when the process ends, however it ends. On a file
    system that shares no locks between machines, a run of another machine is known by its sign of
    life, the time of the lock file, which is renewed twice a minute. Nothing is locked on
    Windows.

    Args:
        work_dir (str or Path): The directory; it is made.

    Raises:
        ConfigError: If a training uses the directory.
    """

    def __init__(self, work_dir: Union[str, Path]) -> None:
        self.path = Path(work_dir, LOCK)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.descriptor: Optional[int] = None
        self._ended = threading.Event()
        if fcntl is not None:
            self._acquire()

    def _acquire(self) -> None:
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._refuse('')
        except OSError:  # a file system without locks: the sign of life alone tells
            pass
        owner = self._owner()
        silent = time.time() - self.path.stat().st_mtime
        if owner.get('host', socket.gethostname()) != socket.gethostname() and silent < SILENCE:
            self._refuse(f' or, if it has died, wait {SILENCE - silent:.0f} seconds, or remove '
                         f'{self.path},')
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(
            dict(host=socket.gethostname(), pid=os.getpid(), started=time.time())).encode(), 0)
        os.register_at_fork(after_in_child=self._leave_to_parent)
        threading.Thread(target=self._live, daemon=True).start()

    def _owner(self) -> dict:
        try:
            return dict(json.loads(self.path.read_text()))
        except (TypeError, ValueError):  # nobody's, or of a run that died while it wrote
            return {}

    def _refuse(self, more: str) -> None:
        owner = self._owner()
        os.close(self.descriptor)
        raise ConfigError(
            f'--work-dir {self.path.parent} is in use by the training of process '
            f'{owner.get("pid", "?")} on {owner.get("host", "this machine")}: wait for its end'
            f'{more} or name another --work-dir.')

    def _leave_to_parent(self) -> None:
        """A forked process, as one that loads data, must not hold the lock."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _live(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                os.utime(self.path)
            except OSError:  # the directory is gone, which the run will find out
                return

    def release(self) -> None:
        """Give the directory back."""
        self._ended.set()
        if self.descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = None
