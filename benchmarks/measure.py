"""How it is measured: time, peak memory, matrix-product rate and floating-point operations."""
import contextlib
import ctypes
import os
import platform
import statistics
import time
from collections import defaultdict
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from torch.utils.flop_counter import FlopCounterMode


class Stopwatch:
    """Times the parts of one run; by CUDA events on a GPU, so that nothing waits for it.

    Args:
        device (torch.device): Where the run computes. The watch starts when it is made.
    """

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
        now = self.now()
        self.spans.append((name, self.last, now))
        self.last = now

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
        for name, start, end in self.spans:
            seconds[name] += self.between(start, end)
        return dict(seconds, total=self.between(self.start, self.last))

    def between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self.device.type == 'cuda' else end - start


def gemm_seconds(rows: int, width: int, hidden: int, dtype: torch.dtype,
                 device: torch.device) -> Callable[[], Dict[str, float]]:
    """Prepare a measurement of the matrix product of an FFN's first layer.

    It gives the seconds, as 'total', of one (rows, width) x (width, hidden) -> (rows, hidden).
    """
    x = torch.randn(rows, width, device=device, dtype=dtype)
    weight = torch.randn(width, hidden, device=device, dtype=dtype)

    def run(repeat: int = 10) -> Dict[str, float]:
        watch = Stopwatch(device)
        for _ in range(repeat):
            x @ weight
        watch.lap('gemm')
        return dict(total=watch.seconds()['total'] / repeat)

    return run


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Measure the peak memory of a run above what was in use before it, in bytes.

    On a GPU this is what PyTorch's allocator handed out. On the CPU it is resident memory of this
    process, as Linux keeps its high-water mark.
    """
    run()  # buffers that stay, such as an optimizer's state, are not part of the peak
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')  # resets the high-water mark
    before = resident_bytes('VmRSS')
    run()
    return resident_bytes('VmHWM') - before


def resident_bytes(field: str) -> int:
    """Read 'VmRSS' (resident memory now) or 'VmHWM' (its high-water mark) of this process."""
    with open('/proc/self/status') as file:
        line = next(line for line in file if line.startswith(f'{field}:'))
    return int(line.split()[1]) * 1024


def count_flops(run: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def summarize(runs: List[Dict[str, float]]) -> Dict[str, float]:
    """Return the median of each part over the runs."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def paired_ratio(runs: List[Dict[str, float]], other: List[Dict[str, float]]) -> float:
    """Return the median of ``runs / other`` over rounds, each of which ran one after the other.

    A machine that is slow for a while is slow for both.
    """
    return statistics.median(a['total'] / b['total'] for a, b in zip(runs, other))


def describe_machine(device: torch.device) -> Dict[str, Any]:
    """Name what was measured on."""
    machine = dict(cpu=cpu_name(), cores=os.cpu_count(), threads=torch.get_num_threads(),
                   torch=torch.__version__, device=device.type)
    if device.type == 'cuda':
        machine.update(device=torch.cuda.get_device_name(device), cuda=torch.version.cuda,
                       tf32_matmul=torch.backends.cuda.matmul.allow_tf32,
                       tf32_cudnn=torch.backends.cudnn.allow_tf32)
    return machine


def cpu_name() -> str:
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.split(':')[1].strip() for line in file
                        if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
