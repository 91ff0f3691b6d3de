"""What the tests of commands share."""
import runpy
import socket
import sys
from pathlib import Path
from typing import Any, Callable, Union
from unittest import mock

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


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])
