"""What the tests of commands share."""
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Optional, Union
from unittest import mock

import torch
import torch.multiprocessing as mp
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer

TOOLS = Path(__file__).parents[1] / 'tools'


def run_tool(name: str, *args: Union[str, Path]) -> int:
    """Run ``tools/<name>.py`` as its command line does, and return its exit status."""
    forget_runs()
    with mock.patch.object(sys, 'argv', [f'{name}.py', *map(str, args)]):
        try:
            runpy.run_path(str(TOOLS / f'{name}.py'), run_name='__main__')
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def forget_runs() -> None:
    """Let a run write to no file of an earlier one: in one second, equal names share theirs."""
    for kept in (MMLogger, MessageHub, Visualizer, *Visualizer.__subclasses__()):
        kept._instance_dict.clear()


def fork_ranks(run: Callable, *args: Any) -> None:
    """Run a function of a rank in two processes, which have imported all that this one has."""
    mp.start_processes(run, args, nprocs=2, start_method='fork')


def fork_session(run: Callable[[], int], output: Path) -> int:
    """Run a function in a forked process, in a session of its own; return the process's id.

    The function returns its exit status; what it prints goes to a file.
    """
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    sys.stdout = sys.stderr = output.open('a', buffering=1)
    for number in (1, 2):
        os.dup2(sys.stdout.fileno(), number)
    torch.set_num_threads(1)  # the threads of OpenMP are not forked
    status = -1
    try:
        status = run()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def wait_for(pid: int, seconds: float) -> Optional[int]:
    """Exit status of a process; kill its session and return None if it takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])
