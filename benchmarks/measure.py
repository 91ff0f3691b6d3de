"""Measure time and peak memory."""
import itertools
import os
import platform
import re
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar('T')
CPU = torch.device('cpu')


def seconds_of(run: Callable[[], object], device: torch.device = CPU) -> float:
    """Run once; return the seconds until the device has finished."""
    wait = torch.cuda.synchronize if device.type == 'cuda' else lambda device: None
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def take_turns(runs: Dict[Any, Callable[[], T]], rounds: int, warmup: int) -> Dict[Any, List[T]]:
    """Alternate the runs, so that other work on the machine slows all of them.

    Returns the results of each run in the rounds after the warm-up.
    """
    results: Dict[Any, List[T]] = {key: [] for key in runs}
    start = time.monotonic()
    for done in range(1, warmup + rounds + 1):
        for key, run in runs.items():
            results[key].append(run())
        left = (time.monotonic() - start) / done * (warmup + rounds - done)
        print(f'{done} of {warmup + rounds} rounds, {left:.0f} s left', flush=True)
    return {key: found[warmup:] for key, found in results.items()}


def peak_memory(run: Callable[[], object], device: torch.device = CPU) -> int:
    """Measure the peak of PyTorch's tensors in a run above the start, in bytes."""
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
    """Return processor, threads and version of PyTorch."""
    info = Path('/proc/cpuinfo')
    name = re.search(r'model name\s*: (.*)', info.read_text()) if info.exists() else None
    machine = dict(cpu=name[1] if name else platform.processor() or platform.machine(),
                   cores=os.cpu_count(), threads=torch.get_num_threads(),
                   torch=torch.__version__, device=device.type)
    if device.type == 'cuda':
        machine.update(device=torch.cuda.get_device_name(device), cuda=torch.version.cuda,
                       tf32=torch.backends.cuda.matmul.allow_tf32)
    return machine
