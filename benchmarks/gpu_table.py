"""Measure on a GPU, in minutes, whole training steps of R50 on 800 x 1066: the plain way, ours,
groups in turns, and mmdet's detector, in TF32 and under bfloat16 autocast, time and peak memory;
and DINO beside mmdet's, in turns and at once."""
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

import torch
from mmengine.config import Config

from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.io import write_atomically

from .arguments import load_config, make_parser, positive, prepare
from .cases import Case, Shapes
from .measure import describe_machine
from .report import describe, markdown_lines, write_record
from .suite import Suite

CONDITIONAL, DINO = 'group_cond_detr_r50_12e', 'group_dino_4scale_r50_12e'
HEADER = ('detector', 'batch', 'mode', 'K', 'ms a step', 'images/s', 'peak MiB')
Job = Tuple[str, Case, int]  # config, what is measured, batch size


def make_jobs(num_groups: int, batch_sizes: list) -> Iterator[Job]:
    """List what is measured; the first batch size alone of DINO and of K = 1."""
    several = dict(plain=num_groups, ours=num_groups, turns=num_groups, stock=1)
    for config, modes, num_queries, sizes in (
            (CONDITIONAL, several, 300, batch_sizes),
            (CONDITIONAL, dict(ours=1), 300, batch_sizes[:1]),
            (DINO, {key: several[key] for key in ('ours', 'turns', 'stock')}, 900,
             batch_sizes[:1])):
        for size in sizes:
            for amp in (None, 'bf16'):
                for mode, k in modes.items():
                    yield config, Case('step', mode, amp, k, num_queries, 7), size


def measure(job: Job, cfg: Config, image_size: Tuple[int, int], device: torch.device,
            rounds: int) -> Dict[str, Any]:
    """Measure a job; what does not fit into the memory has no numbers."""
    config, case, batch_size = job
    seconds, peak = None, None
    try:
        results = Suite(cfg, [case], Shapes(batch_size, image_size), device).measure(
            rounds, 2, [case])
        seconds, peak = results.seconds(case)['total'], results.peak[case]
    except torch.cuda.OutOfMemoryError:
        pass
    finally:
        torch.cuda.empty_cache()
    return dict(config=config, batch_size=batch_size, mode=case.name, num_groups=case.num_groups,
                seconds=seconds, peak_memory=peak)


def table_row(row: Dict[str, Any]) -> tuple:
    """Return the cells of a job."""

    def cell(value: Optional[float], scale: float) -> str:
        return 'out of memory' if value is None else f'{value * scale:.1f}'

    seconds = row['seconds']
    return (row['config'], row['batch_size'], row['mode'], row['num_groups'], cell(seconds, 1e3),
            cell(seconds and row['batch_size'] / seconds, 1), cell(row['peak_memory'], 2**-20))


def main() -> None:
    parser = make_parser('benchmarks.gpu_table', __doc__, '--image-size', '--rounds', '--device',
                         tf32=True)
    parser.add_argument('--groups', type=positive, default=11, help='K')
    parser.add_argument('--batch-sizes', nargs='+', type=positive, default=[2, 8])
    parser.add_argument('--configs', nargs='+', choices=[CONDITIONAL, DINO],
                        default=[CONDITIONAL, DINO])
    parser.add_argument('--out', type=Path, default=Path('gpu_table'),
                        help='OUT.md and OUT.json are written (default: %(default)s)')
    args = parser.parse_args()
    device = prepare(args)
    configs = {name: load_config(name) for name in args.configs}
    rows, machine = [], describe_machine(device)
    for job in make_jobs(args.groups, args.batch_sizes):
        if job[0] not in configs:
            continue
        rows.append(measure(job, configs[job[0]], tuple(args.image_size), device, args.rounds))
        # After each: what was measured stays, also when the machine is taken away.
        page = [describe(machine), '', *markdown_lines(HEADER, map(table_row, rows)), '']
        write_atomically(args.out.with_suffix('.md'), '\n'.join(page).encode())
        write_record(args.out.with_suffix('.json'), 'benchmarks.gpu_table',
                     dict(machine=machine, rows=rows))
    print('\n'.join(page))


if __name__ == '__main__':
    end_in_one_line(main)
