"""Measure on a GPU, in minutes, whole training steps of R50 on 800 x 1066: the plain way, ours,
groups in turns, and mmdet's detector, in TF32 and under bfloat16 autocast, time and peak memory;
and DINO beside mmdet's, in turns and at once."""
import argparse
from pathlib import Path
from typing import Iterator, Tuple

import torch
from mmengine.config import Config

from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.io import write_atomically

from .arguments import add_running, load_config, positive, prepare
from .cases import Case, Shapes
from .measure import describe_machine
from .report import describe, markdown_lines
from .suite import measure

CONDITIONAL, DINO = 'group_cond_detr_r50_12e', 'group_dino_4scale_r50_12e'
HEADER = ('detector', 'batch', 'mode', 'K', 'ms a step', 'images/s', 'peak MiB')
Job = Tuple[str, Case, int]  # config, what is measured, batch size


def make_jobs(num_groups: int, batch_sizes: list) -> Iterator[Job]:
    """List what is measured; the first batch size alone of DINO and of K = 1."""
    k, first = num_groups, batch_sizes[:1]
    for config, modes, num_queries, sizes in (
            (CONDITIONAL, dict(plain=k, ours=k, turns=k, stock=1), 300, batch_sizes),
            (CONDITIONAL, dict(ours=1), 300, first),
            (DINO, dict(ours=k, turns=k, stock=1), 900, first)):
        for size in sizes:
            for amp in (None, 'bf16'):
                for mode, groups in modes.items():
                    yield config, Case('step', mode, amp, groups, num_queries), size


def table_row(job: Job, cfg: Config, image_size: Tuple[int, int], device: torch.device,
              rounds: int) -> tuple:
    """Measure a job; return its cells."""
    config, case, batch_size = job
    try:
        results = measure(cfg, [case], Shapes(batch_size, image_size), device, rounds, 2, [case])
        seconds = results.seconds(case)['total']
        cells = (f'{1e3 * seconds:.1f}', f'{batch_size / seconds:.1f}',
                 f'{results.peak[case] / 2**20:.1f}')
    except torch.cuda.OutOfMemoryError:
        cells = ('out of memory', ) * 3
    torch.cuda.empty_cache()
    return config, batch_size, case.name, case.num_groups, *cells


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.gpu_table', description=__doc__)
    add_running(parser, rounds=3)
    parser.add_argument('--groups', type=positive, default=11, help='K')
    parser.add_argument('--batch-sizes', nargs='+', type=positive, default=[2, 8])
    parser.add_argument('--configs', nargs='+', choices=[CONDITIONAL, DINO],
                        default=[CONDITIONAL, DINO])
    parser.add_argument('--out', type=Path, default=Path('gpu_table.md'),
                        help='file to write (default: %(default)s)')
    parser.set_defaults(tf32=True)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    prepare(args)
    configs = {name: load_config(name) for name in args.configs}
    rows = []
    for job in make_jobs(args.groups, args.batch_sizes):
        if job[0] in configs:
            rows.append(table_row(job, configs[job[0]], tuple(args.image_size), args.device,
                                  args.rounds))
            # After each: what was measured stays, also when the machine is taken away.
            page = [describe(describe_machine(args.device)), '', *markdown_lines(HEADER, rows), '']
            write_atomically(args.out, '\n'.join(page).encode())
    print('\n'.join(page))


if __name__ == '__main__':
    end_in_one_line(main)
