"""Runs cases side by side, and collects what was measured."""
import math
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from .cases import AMP, Benchmark, Case, Shapes, build_model, share_weights
from .measure import count_flops, gemm_seconds, show_progress, take_turns

CRITERION_ROUNDS = 4  # it is short, so that it can be run more often


@dataclass
class Results:
    """What was measured of each case."""
    # Seconds of each part in each round.
    runs: Dict[Case, List[Dict[str, float]]] = field(default_factory=dict)
    # Of each autocast type (None: float32), seconds of an FFN's matrix product in the same rounds.
    gemm: Dict[Optional[str], List[float]] = field(default_factory=dict)
    gemm_flops: int = 0  # operations of that product
    # Of the part 'decoder', operations of the matrix products in the plain way, whatever was saved
    # or wasted since.
    flops: Dict[Case, int] = field(default_factory=dict)
    peak: Dict[Case, int] = field(default_factory=dict)  # bytes above those in use before the run
    # Of the part 'inference', the largest difference of logits and normalized boxes, query by
    # query, to those of the first case.
    difference: Dict[Case, float] = field(default_factory=dict)

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

    def gemm_rate(self, amp: Optional[str]) -> float:
        """Floating-point operations a second of the matrix product."""
        return self.gemm_flops / statistics.median(self.gemm[amp])

    def share(self, case: Case) -> Optional[float]:
        """Share of the matrix-product rate that a case reached, if its operations are known."""
        if case not in self.flops:
            return None
        return self.flops[case] / self.seconds(case)['total'] / self.gemm_rate(case.amp)


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
        self.results = Results()

    def measure(self, rounds: int, warmup: int, memory: Sequence[Case]) -> Results:
        """Measure memory, then time."""
        results = self.results
        for case in show_progress(memory, 'memory'):
            results.peak[case] = self.peak_memory(case)
        for part, benchmarks in self.prepare():
            gemms = {}
            if part == 'decoder':
                gemms = self.gemms(benchmarks)
                results.flops.update((case, self.decoder_flops(case)) for case in benchmarks)
            repeat = CRITERION_ROUNDS if part == 'criterion' else 1
            runs = take_turns({**benchmarks, **gemms}, rounds * repeat, warmup, part)
            results.gemm.update((amp, runs.pop(amp)) for amp in gemms)
            results.runs.update(runs)
            if part == 'inference':
                self.compare(list(benchmarks.values()))
        return results

    def prepare(self) -> Iterator[Tuple[str, Dict[Case, Callable]]]:
        """Yield each part and what runs its cases."""
        if self.own_processes:
            for case in self.cases:
                process = OwnProcess(self.cfg, case, self.shapes)
                with process.pool:
                    yield 'step', {case: process}
            return
        models = {case.model: build_model(self.cfg, case).to(self.device) for case in self.cases}
        for part in dict.fromkeys(case.part for case in self.cases):
            share_weights(list(models.values()))  # the optimizer may have stepped
            yield part, {case: self.benchmark(case, models[case.model])
                         for case in self.cases if case.part == part}

    def benchmark(self, case: Case, model: Optional[torch.nn.Module] = None) -> Benchmark:
        return Benchmark(case, self.shapes, self.cfg, self.device, model)

    def gemms(self, cases: Sequence[Case]) -> Dict[Optional[str], Callable[[], float]]:
        """Prepare the matrix product of the decoder's FFN with the most queries."""
        rows = self.shapes.batch_size * max(c.num_groups * c.num_queries for c in self.cases)
        ffn = self.cfg.model.decoder.layer_cfg.ffn_cfg
        size = rows, ffn.embed_dims, ffn.feedforward_channels
        self.results.gemm_flops = 2 * math.prod(size)
        return {amp: gemm_seconds(*size, AMP.get(amp, torch.float32), self.device)
                for amp in dict.fromkeys(case.amp for case in cases)}

    def decoder_flops(self, case: Case) -> int:
        """Count what the plain way computes, on no device at all."""
        mode = 'plain' if self.cfg.model.type == 'GroupConditionalDETR' else 'ours'
        case = Case('decoder', mode, None, case.num_groups, case.num_queries, 1)
        benchmark = Benchmark(case, self.shapes, self.cfg, torch.device('meta'))
        return count_flops(lambda: sum(x.sum() for x in benchmark.decode()).backward())

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

    def compare(self, benchmarks: Sequence[Benchmark]) -> None:
        """Compare the predictions of all cases to those of the first."""
        first = benchmarks[0].predict()
        for benchmark in benchmarks:
            self.results.difference[benchmark.case] = max(
                (a - b).abs().max().item() for a, b in zip(first, benchmark.predict()))


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
