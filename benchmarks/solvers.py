"""Time the solvers of the assignment problem on the costs of a batch.

The problems are those of one training step, (layers x images x groups) of N queries x G objects,
with costs by the registered match costs of random predictions and boxes:
``python -m benchmarks.solvers``.
"""
import functools
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict

import numpy as np
import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from rich.console import Console
from scipy.optimize import linear_sum_assignment

from groupdetr_mmdet import GroupHungarianAssigner

from .arguments import make_parser, positive
from .report import make_table

try:
    import lap
except ImportError:
    lap = None

MATCH_COSTS = [
    dict(type='mmdet.FocalLossCost', weight=2.0, eps=1e-8),
    dict(type='mmdet.BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='mmdet.IoUCost', iou_mode='giou', weight=2.0),
]


def make_problems(num_problems: int, num_queries: int, num_objects: int,
                  num_classes: int = 80) -> np.ndarray:
    """Return costs of shape (num_problems, num_queries, num_objects)."""
    generator = torch.Generator().manual_seed(0)

    def boxes(n: int) -> torch.Tensor:
        cxcywh = torch.rand(n, 4, generator=generator) * .5 + .01
        return bbox_cxcywh_to_xyxy(cxcywh) * 800

    rows = num_problems * num_queries
    predictions = InstanceData(
        scores=torch.randn(rows, num_classes, generator=generator) - 4, bboxes=boxes(rows))
    targets = InstanceData(
        labels=torch.randint(num_classes, (num_objects, ), generator=generator),
        bboxes=boxes(num_objects))
    assigner = GroupHungarianAssigner(MATCH_COSTS, num_query_groups=num_problems)
    cost = assigner.match_cost_matrix(predictions, targets, dict(img_shape=(800, 800)))
    return cost.view(num_problems, num_queries, num_objects).numpy()


def solvers(threads: int) -> Dict[str, Callable[[np.ndarray], list]]:
    """Return the solvers; each takes a stack of problems."""
    pool = ThreadPoolExecutor(threads)
    found: Dict[str, Callable[[np.ndarray], list]] = {
        'scipy': lambda x: [linear_sum_assignment(problem) for problem in x],
        f'scipy, {threads} threads': lambda x: list(pool.map(linear_sum_assignment, x)),
    }
    for name in ('lapjvr_batch', 'lapjvh_batch'):
        if hasattr(lap, name):
            for precision, n in itertools.product(('float64', 'native'), (1, threads)):
                solve = functools.partial(getattr(lap, name), extend_cost=True, return_cost=False,
                                          precision=precision, n_threads=n)
                found[f'{name}, {precision}, {n} threads'] = lambda x, solve=solve: list(
                    zip(*solve(x)))
    return found


def total_cost(problems: np.ndarray, pairs: list) -> float:
    return sum(problem[rows, columns].sum() for problem, (rows, columns) in zip(problems, pairs))


def main() -> None:
    parser = make_parser('benchmarks.solvers', __doc__, '--rounds', '--threads', rounds=15,
                         threads=2)
    parser.add_argument('--problems', type=positive, default=132, help='layers x images x groups')
    parser.add_argument('--queries', type=positive, default=300)
    parser.add_argument('--objects', type=positive, nargs='+', default=[7, 20, 60, 200])
    args = parser.parse_args()
    problems = {g: make_problems(args.problems, args.queries, g) for g in args.objects}
    found = solvers(args.threads)
    seconds = {(name, g): [] for name in found for g in problems}
    for g, costs in problems.items():
        least = total_cost(costs, found['scipy'](costs))
        for _ in range(args.rounds):
            for name, solve in found.items():
                start = time.perf_counter()
                pairs = solve(costs)
                seconds[name, g].append(time.perf_counter() - start)
                assert np.isclose(total_cost(costs, pairs), least, rtol=1e-5), name
    Console().print(make_table(
        ('solver', *(f'{g} objects' for g in problems)),
        ((name, *(f'{min(seconds[name, g]) * 1e3:.2f}' for g in problems)) for name in found),
        title=f'{args.problems} problems of {args.queries} queries (ms, best round)'))


if __name__ == '__main__':
    main()
