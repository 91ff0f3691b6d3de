"""Run cases side by side, and collect the results."""
import statistics
from dataclasses import dataclass, field
from typing import Any, Collection, Dict, List, Sequence

import torch
from mmengine.config import Config

from .cases import Benchmark, Case, Shapes, build_model, share_weights
from .measure import peak_memory, take_turns

CRITERION_ROUNDS = 4  # more runs, because it is short


@dataclass
class Results:
    """Results of each case."""
    seconds: Dict[Case, List[float]] = field(default_factory=dict)  # of each round
    peak: Dict[Case, int] = field(default_factory=dict)  # bytes above those in use before the run

    def ratio(self, case: Case, other: Case) -> float:
        """Return the median over rounds of the ratio of two cases.

        The cases of a round run one after the other, so that a slow machine slows both.
        """
        return statistics.median(
            a / b for a, b in zip(self.seconds[case], self.seconds[other]))


@dataclass(frozen=True)
class Row:
    """A ratio of two cases and its bound."""
    what: str  # description
    case: Case  # numerator
    other: Case  # denominator
    bound: float  # aim: the least ratio if more is better, else the most
    more: bool = True  # is better
    memory: bool = False  # compare peak memory instead of time
    factor: int = 1  # of the denominator

    def record(self, results: Results) -> Dict[str, Any]:
        """Return ratio and bound."""
        value = (results.peak[self.case] / results.peak[self.other] if self.memory
                 else results.ratio(self.case, self.other) / self.factor)
        return dict(what=self.what, bound=self.bound, more_is_better=self.more, value=value,
                    reached=value >= self.bound if self.more else value <= self.bound)


def measure(cfg: Config, cases: Sequence[Case], shapes: Shapes, device: torch.device, rounds: int,
            warmup: int, memory: Collection[Case]) -> Results:
    """Measure the time of cases, and the memory of some."""
    results = Results()
    models = {case.model: build_model(cfg, case).to(device) for case in cases}
    for part in dict.fromkeys(case.part for case in cases):
        share_weights(list(models.values()))  # a step may have changed them
        runs = {case: Benchmark(case, shapes, cfg, device, models[case.model])
                for case in cases if case.part == part}
        for case in filter(memory.__contains__, runs):
            results.peak[case] = peak_memory(runs[case], device)
            print(f'{case.name}, K = {case.num_groups}: {results.peak[case] / 2**20:.0f} MiB',
                  flush=True)
        repeat = CRITERION_ROUNDS if part == 'criterion' else 1
        results.seconds.update(take_turns(runs, rounds * repeat, warmup))
    return results


def measure_rows(cfg: Config, rows: Sequence[Row], *args) -> Results:
    """Measure what rows compare; ``args`` are as for :func:`measure`, after ``cases``."""
    cases = [case for row in rows for case in (row.case, row.other)]
    memory = [case for row in rows if row.memory for case in (row.case, row.other)]
    return measure(cfg, list(dict.fromkeys(cases)), *args, memory)
