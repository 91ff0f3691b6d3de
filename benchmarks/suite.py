"""Runs cases side by side, and collects what was measured."""
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Callable, Dict, List, Optional, Sequence

import torch
from mmengine.config import Config
from rich.progress import Progress

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
            ``gemm_flops`` operations, measured in the same rounds.
        flops: Of each case of the part 'decoder', the operations of its matrix products.
        peak: Of each case, bytes of peak memory above those in use before the run.
        difference: Of each case of the part 'inference', the largest difference of its boxes
            (pixels) and scores to those of the first.
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
    """

    def __init__(self, cfg: Config, cases: Sequence[Case], shapes: Shapes,
                 device: torch.device) -> None:
        self.cfg, self.cases, self.shapes, self.device = cfg, cases, shapes, device
        self.results = Results()

    def measure(self, rounds: int, warmup: int, memory: Sequence[Case],
                progress: Progress) -> Results:
        """Measure memory, then time."""
        if memory:
            for case in progress.track(memory, description='memory'):
                self.results.peak[case] = self.peak_memory(case)
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
                self.results.gemm = {amp: [] for amp in dict.fromkeys(c.amp for c in cases)}
            repeat = CRITERION_ROUNDS if part == 'criterion' else 1
            self.alternate(benchmarks, rounds * repeat, warmup, progress)
            if part == 'inference':
                self.compare(list(benchmarks.values()))
        return self.results

    def alternate(self, benchmarks: Dict[Case, Benchmark], rounds: int, warmup: int,
                  progress: Progress) -> None:
        """Run all once, then all again, and so on: what slows the machine slows all of them."""
        gemms = self.gemms() if next(iter(benchmarks)).part == 'decoder' else {}
        runs: Dict[Case, Runs] = {case: [] for case in benchmarks}
        for _ in progress.track(
                range(warmup + rounds), description=next(iter(benchmarks)).part):
            for amp, gemm in gemms.items():
                self.results.gemm[amp].append(gemm())
            for case, benchmark in benchmarks.items():
                runs[case].append(benchmark())
        self.results.runs.update({case: x[warmup:] for case, x in runs.items()})

    def gemms(self) -> Dict[Optional[str], Callable[[], Dict[str, float]]]:
        """Prepare the matrix product of the decoder's FFN with the most queries."""
        rows = self.shapes.batch_size * max(c.num_groups * c.num_queries for c in self.cases)
        ffn = self.cfg.model.decoder.layer_cfg.ffn_cfg
        width, hidden = ffn.embed_dims, ffn.feedforward_channels
        self.results.gemm_flops = 2 * rows * width * hidden
        return {
            amp: gemm_seconds(rows, width, hidden, AMP.get(amp, torch.float32), self.device)
            for amp in self.results.gemm
        }

    def decoder_flops(self, case: Case) -> int:
        """Count on no device at all; our kernels compute the same as the baseline's ``bmm``."""
        mode = 'plain' if self.cfg.model.type == 'GroupConditionalDETR' else 'ours'
        case = Case('decoder', mode, None, case.num_groups, case.num_queries, 1)
        meta = torch.device('meta')
        benchmark = Benchmark(case, self.shapes, build_model(self.cfg, case).to(meta), self.cfg,
                              meta)
        return count_flops(benchmark.decode_and_backward)

    def peak_memory(self, case: Case) -> int:
        """Measure in a process of its own, whose memory nothing else has touched."""
        if self.device.type == 'cuda':
            return measure_peak(self.cfg, case, self.shapes, self.device)
        # With large blocks mapped alone, memory that is freed leaves the process at once, and
        # the peak is that of the tensors alive, not of the allocator's leftovers.
        os.environ['MALLOC_MMAP_THRESHOLD_'] = str(1 << 16)
        with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
            return pool.submit(measure_peak, self.cfg, case, self.shapes, self.device,
                               torch.get_num_threads()).result()

    def compare(self, benchmarks: Sequence[Benchmark]) -> None:
        """Compare the detections of all cases to those of the first."""
        first = benchmarks[0].results
        for benchmark in benchmarks:
            self.results.difference[benchmark.case] = max(
                (a[name] - b[name]).abs().max().item()
                for a, b in zip(first, benchmark.results) for name in ('bboxes', 'scores'))


def measure_peak(cfg: Config, case: Case, shapes: Shapes, device: torch.device,
                 num_threads: Optional[int] = None) -> int:
    """Measure the peak memory of a case in this process, in bytes."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    model = build_model(cfg, case).to(device)
    return peak_memory(Benchmark(case, shapes, model, cfg, device), device)
