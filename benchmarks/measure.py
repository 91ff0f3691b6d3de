"""How it is measured: time, and peak memory."""
import contextlib
import itertools
import os
import platform
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar('T')


class Stopwatch:
    """Times the parts of one run, from when it is made; on a GPU by events, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spans: List[Tuple[str, Any, Any]] = []
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        self.start = self.last = self.now()

    def now(self) -> Any:
        if self.device.type != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def lap(self, name: str) -> None:
        """End a part, and start the next."""
        start, self.last = self.last, self.now()
        self.spans.append((name, start, self.last))

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Time something inside a part."""
        start = self.now()
        yield
        self.spans.append((name, start, self.now()))

    def seconds(self) -> Dict[str, float]:
        """Return the seconds of each name, and from the start to the last lap as 'total'."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        seconds: Dict[str, float] = defaultdict(float)
        for name, start, end in (*self.spans, ('total', self.start, self.last)):
            seconds[name] += (start.elapsed_time(end) / 1e3 if self.device.type == 'cuda'
                              else end - start)
        return dict(seconds)


def take_turns(runs: Dict[Any, Callable[[], T]], rounds: int, warmup: int) -> Dict[Any, List[T]]:
    """Run all once, then all again, and so on: what slows the machine slows all of them.

    Returns what each run returned in the rounds after the warm-up.
    """
    results: Dict[Any, List[T]] = {key: [] for key in runs}
    start = time.monotonic()
    for done in range(1, warmup + rounds + 1):
        for key, run in runs.items():
            results[key].append(run())
        left = (time.monotonic() - start) / done * (warmup + rounds - done)
        print(f'{done} of {warmup + rounds} rounds, {left:.0f} s left', flush=True)
    return {key: found[warmup:] for key, found in results.items()}


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Measure the peak of PyTorch's tensors in a run above those alive before it, in bytes."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    changes = sorted((event.start_ns(), event.nbytes())  # allocated, or negative: freed
                     for event in profiler.profiler.kineto_results.events()
                     if event.name() == '[memory]')
    return max(itertools.accumulate(nbytes for _, nbytes in changes), default=0)


def describe_machine(device: torch.device) -> Dict[str, Any]:
    """Name what was measured on."""
    info = Path('/proc/cpuinfo')
    name = re.search(r'model name\s*: (.*)', info.read_text()) if info.exists() else None
    machine = dict(cpu=name[1] if name else platform.processor() or platform.machine(),
                   cores=os.cpu_count(), threads=torch.get_num_threads(),
                   torch=torch.__version__, device=device.type)
    if device.type == 'cuda':
        machine.update(device=torch.cuda.get_device_name(device), cuda=torch.version.cuda,
                       tf32=torch.backends.cuda.matmul.allow_tf32)
    return machine
