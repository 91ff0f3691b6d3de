"""Runs cases side by side, and collects what was measured."""
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence

import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
from rich.console import Console
from rich.progress import track

from .cases import AMP, Benchmark, Case, Shapes, build_model, share_weights
from .measure import count_flops, gemm_seconds, paired_ratio, peak_memory, summarize

Runs = List[Dict[str, float]]
CRITERION_ROUNDS = 4  # it is short, so that it can be run more often


@dataclass
class Results:
    """What was measured.

    Attributes:
        runs: Of each case, the seconds of each part in each round.
        gemm: Of each autocast type (None: float32), the seconds of an FFN's matrix product, of
            ``gemm_flops`` operations, in the same rounds.
        flops: Of each case of the part 'decoder', the operations of its matrix products in the
            plain way, whatever was saved or wasted since.
        peak: Of each case, bytes of peak memory above those in use before the run.
        difference: Of each case of the part 'inference', the largest difference of its logits
            and normalized boxes, query by query, to those of the first.
    """
    runs: Dict[Case, Runs] = field(default_factory=dict)
    gemm: Dict[Optional[str], Runs] = field(default_factory=dict)
    gemm_flops: int = 0
    flops: Dict[Case, int] = field(default_factory=dict)
    peak: Dict[Case, int] = field(default_factory=dict)
    difference: Dict[Case, float] = field(default_factory=dict)

    def seconds(self, case: Case) -> Dict[str, float]:
        return summarize(self.runs[case])

    def ratio(self, case: Case, other: Case) -> float:
        return paired_ratio(self.runs[case], self.runs[other])

    def gemm_rate(self, amp: Optional[str]) -> float:
        """Floating-point operations a second of the matrix product."""
        return self.gemm_flops / summarize(self.gemm[amp])['total']

    def share(self, case: Case) -> Optional[float]:
        """Share of the matrix-product rate that a case reached, if its operations are known."""
        if case not in self.flops:
            return None
        return self.flops[case] / self.seconds(case)['total'] / self.gemm_rate(case.amp)


class Suite:
    """Cases that are measured side by side.

    Args:
        cfg (Config): Config of our detector.
        cases (list[Case]): What to measure.
        shapes (Shapes): Sizes of the inputs.
        device (torch.device): Where to run.
        own_processes (bool): Whether each case, all of them steps, is timed in a process of its
            own, as a training is: on a CPU, memory that another case has used and freed would
            spare it the page faults of its own. A GPU's allocator keeps memory anyway.
    """

    def __init__(self, cfg: Config, cases: Sequence[Case], shapes: Shapes, device: torch.device,
                 own_processes: bool = False) -> None:
        self.cfg, self.cases, self.shapes, self.device = cfg, cases, shapes, device
        self.own_processes = own_processes and device.type == 'cpu'
        self.results = Results()

    def measure(self, rounds: int, warmup: int, memory: Sequence[Case]) -> Results:
        """Measure memory, then time."""
        for case in show_progress(memory, 'memory'):
            self.results.peak[case] = self.peak_memory(case)
        if self.own_processes:
            self.alternate('step', {case: OwnProcess(self, case) for case in self.cases},
                           rounds, warmup)
            return self.results
        models = {case.model: build_model(self.cfg, case).to(self.device) for case in self.cases}
        for part in dict.fromkeys(case.part for case in self.cases):
            share_weights(list(models.values()))  # the optimizer may have stepped
            cases = [case for case in self.cases if case.part == part]
            benchmarks = {
                case: Benchmark(case, self.shapes, models[case.model], self.cfg, self.device)
                for case in cases
            }
            if part == 'decoder':
                self.results.flops.update({case: self.decoder_flops(case) for case in cases})
            repeat = CRITERION_ROUNDS if part == 'criterion' else 1
            self.alternate(part, benchmarks, rounds * repeat, warmup)
            if part == 'inference':
                self.compare(list(benchmarks.values()))
        return self.results

    def alternate(self, part: str, benchmarks: Dict[Case, Callable], rounds: int,
                  warmup: int) -> None:
        """Run all once, then all again, and so on: what slows the machine slows all of them."""
        runners: Dict[object, Callable[[], Dict[str, float]]] = dict(benchmarks)
        gemms = self.gemms(benchmarks) if part == 'decoder' else {}
        runners.update(gemms)
        short = part == 'criterion'
        runs: Dict[object, Runs] = {key: [] for key in runners}
        for _ in show_progress(range(warmup + rounds), part):
            for key, runner in runners.items():
                if short:  # or it pays for fetching again the memory that the one before gave back
                    runner()
                runs[key].append(runner())
        self.results.runs.update({case: runs[case][warmup:] for case in benchmarks})
        self.results.gemm.update({amp: runs[amp][warmup:] for amp in gemms})

    def gemms(self, cases: Iterable[Case]) -> Dict[Optional[str], Callable]:
        """Prepare the matrix product of the decoder's FFN with the most queries."""
        rows = self.shapes.batch_size * max(c.num_groups * c.num_queries for c in self.cases)
        ffn = self.cfg.model.decoder.layer_cfg.ffn_cfg
        width, hidden = ffn.embed_dims, ffn.feedforward_channels
        self.results.gemm_flops = 2 * rows * width * hidden
        return {
            amp: gemm_seconds(rows, width, hidden, AMP.get(amp, torch.float32), self.device)
            for amp in dict.fromkeys(case.amp for case in cases)
        }

    def decoder_flops(self, case: Case) -> int:
        """Count what the plain way computes, on no device at all."""
        mode = 'plain' if self.cfg.model.type == 'GroupConditionalDETR' else 'ours'
        case = Case('decoder', mode, None, case.num_groups, case.num_queries, 1)
        meta = torch.device('meta')
        benchmark = Benchmark(case, self.shapes, build_model(self.cfg, case).to(meta), self.cfg,
                              meta)
        return count_flops(benchmark.decode_and_backward)

    def peak_memory(self, case: Case) -> int:
        """Measure in a process of its own, whose memory nothing else has touched."""
        if self.device.type == 'cuda':
            model = build_model(self.cfg, case).to(self.device)
            return peak_memory(Benchmark(case, self.shapes, model, self.cfg, self.device),
                               self.device)
        # With large blocks mapped alone, memory that is freed leaves the process at once, and
        # the peak is that of the tensors alive, not of the allocator's leftovers.
        os.environ['MALLOC_MMAP_THRESHOLD_'] = str(1 << 16)
        try:
            with OwnProcess(self, case).pool as pool:
                return pool.submit(measure_peak).result()
        finally:
            del os.environ['MALLOC_MMAP_THRESHOLD_']

    def compare(self, benchmarks: Sequence[Benchmark]) -> None:
        """Compare the predictions of all cases to those of the first."""
        first = benchmarks[0].predict()
        for benchmark in benchmarks:
            self.results.difference[benchmark.case] = max(
                (a - b).abs().max().item() for a, b in zip(first, benchmark.predict()))


def show_progress(items: Sequence, description: str) -> Iterator:
    """Show a bar with the time left, or a line for each item where no terminal redraws a bar."""
    if Console().is_terminal:
        yield from track(items, description)
        return
    start = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        left = (time.monotonic() - start) / done * (len(items) - done)
        print(f'{description}: {done} of {len(items)}, {left:.0f} s left', flush=True)


class OwnProcess:
    """A case that runs in a process of its own, with the threads of this one."""

    def __init__(self, suite: Suite, case: Case) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))
        self.pool.submit(prepare_process, suite.cfg, case, suite.shapes,
                         torch.get_num_threads()).result()

    def __call__(self) -> Dict[str, float]:
        return self.pool.submit(run_benchmark).result()


def prepare_process(cfg: Config, case: Case, shapes: Shapes, num_threads: int) -> None:
    """Build the case of this process."""
    global benchmark
    if cfg.get('custom_imports'):  # in a new process nothing of the config is imported yet
        import_modules_from_strings(**cfg.custom_imports)
    torch.set_num_threads(num_threads)
    benchmark = Benchmark(case, shapes, build_model(cfg, case), cfg, torch.device('cpu'))


def run_benchmark() -> Dict[str, float]:
    """Run the case of this process once."""
    return benchmark()


def measure_peak() -> int:
    """Measure the peak memory of the case of this process, in bytes."""
    return peak_memory(benchmark, torch.device('cpu'))
