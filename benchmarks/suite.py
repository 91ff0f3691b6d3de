"""Runs cases side by side, and collects what was measured."""
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from .cases import Benchmark, Case, Shapes, build_model, share_weights
from .measure import take_turns

CRITERION_ROUNDS = 4  # it is short, so that it can be run more often


@dataclass
class Results:
    """What was measured of each case."""
    # Seconds of each part in each round.
    runs: Dict[Case, List[Dict[str, float]]] = field(default_factory=dict)
    peak: Dict[Case, int] = field(default_factory=dict)  # bytes above those in use before the run

    def seconds(self, case: Case) -> Dict[str, float]:
        """Return the median of each part over the rounds."""
        runs = self.runs[case]
        return {name: statistics.median(run[name] for run in runs) for name in runs[0]}

    def ratio(self, case: Case, other: Case) -> float:
        """Return the median of the ratio over rounds, each of which ran one after the other.

        A machine that is slow for a while is slow for both.
        """
        return statistics.median(
            a['total'] / b['total'] for a, b in zip(self.runs[case], self.runs[other]))


@dataclass(frozen=True)
class Row:
    """A ratio of two cases and its bound."""
    what: str  # in words, what is compared
    case: Case  # numerator
    other: Case  # denominator
    bound: float  # what the ratio is to reach: at least that where more is better, else at most
    more: bool = True  # is better
    memory: bool = False  # peak memory is compared, and not time
    factor: int = 1  # of the denominator

    def record(self, results: Results) -> Dict[str, Any]:
        """Return what was reached."""
        value = (results.peak[self.case] / results.peak[self.other] if self.memory
                 else results.ratio(self.case, self.other) / self.factor)
        return dict(what=self.what, bound=self.bound, more_is_better=self.more, value=value,
                    reached=value >= self.bound if self.more else value <= self.bound)


class Suite:
    """Cases of our detector's config that are measured side by side.

    With ``own_processes``, each case, all of them steps, is timed alone in a process of its own,
    as a training runs: on a CPU, what other cases did with memory changes what it costs to fetch.
    A GPU's allocator keeps memory anyway.
    """

    def __init__(self, cfg: Config, cases: Sequence[Case], shapes: Shapes, device: torch.device,
                 own_processes: bool = False) -> None:
        self.cfg, self.cases, self.shapes, self.device = cfg, cases, shapes, device
        self.own_processes = own_processes and device.type == 'cpu'

    def measure(self, rounds: int, warmup: int, memory: Sequence[Case]) -> Results:
        """Measure memory, then time."""
        results = Results(peak={case: self.peak_memory(case) for case in memory})
        for part, benchmarks in self.prepare():
            repeat = CRITERION_ROUNDS if part == 'criterion' else 1
            results.runs.update(take_turns(benchmarks, rounds * repeat, warmup, part))
        return results

    def prepare(self) -> Iterator[Tuple[str, Dict[Case, Callable]]]:
        """Yield each part and what runs its cases."""
        if self.own_processes:
            for case in self.cases:
                process = OwnProcess(self.cfg, case, self.shapes)
                with process.pool:
                    yield f'{case.name}, K = {case.num_groups}', {case: process}
            return
        models = {case.model: build_model(self.cfg, case).to(self.device) for case in self.cases}
        for part in dict.fromkeys(case.part for case in self.cases):
            share_weights(list(models.values()))  # the optimizer may have stepped
            yield part, {case: self.benchmark(case, models[case.model])
                         for case in self.cases if case.part == part}

    def benchmark(self, case: Case, model: Optional[torch.nn.Module] = None) -> Benchmark:
        return Benchmark(case, self.shapes, self.cfg, self.device, model)

    def peak_memory(self, case: Case) -> int:
        """Measure in a process of its own, whose memory nothing else has touched."""
        if self.device.type == 'cuda':
            return self.benchmark(case).peak_memory()
        # With large blocks mapped alone, memory that is freed leaves the process at once, and
        # the peak is that of the tensors alive, not of the allocator's leftovers.
        os.environ['MALLOC_MMAP_THRESHOLD_'] = str(1 << 16)
        try:
            process = OwnProcess(self.cfg, case, self.shapes)
        finally:  # processes that are timed must not have it
            del os.environ['MALLOC_MMAP_THRESHOLD_']
        with process.pool:
            return process(Benchmark.peak_memory)


class OwnProcess:
    """A benchmark in a process of its own, with the threads of this one."""

    def __init__(self, cfg: Config, case: Case, shapes: Shapes) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
        self.pool.submit(prepare_process, torch.get_num_threads(), cfg, case, shapes).result()

    def __call__(self, method: Callable[[Benchmark], Any] = Benchmark.__call__) -> Any:
        return self.pool.submit(call_in_process, method).result()


def prepare_process(num_threads: int, cfg: Config, case: Case, shapes: Shapes) -> None:
    """Build the benchmark of this process."""
    global benchmark
    if cfg.get('custom_imports'):  # in a new process nothing of the config is imported yet
        import_modules_from_strings(**cfg.custom_imports)
    torch.set_num_threads(num_threads)
    benchmark = Benchmark(case, shapes, cfg, torch.device('cpu'))


def call_in_process(method: Callable[[Benchmark], Any]) -> Any:
    return method(benchmark)
