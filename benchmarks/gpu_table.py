"""Measure on a GPU, in minutes, whole training steps of R50 on 800 x 1066: the plain way, ours,
groups in turns, and mmdet's detector, in TF32 and under bfloat16 autocast, time and peak memory;
and DINO by each way to compute deformable attention that is installed."""
import argparse
import contextlib
from pathlib import Path
from typing import Any, ContextManager, Dict, List, NamedTuple, Optional

import torch
from mmengine.config import Config

from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.io import write_atomically

from .arguments import load_config, make_parser, positive, prepare
from .cases import Case, Shapes, mmcv_attention
from .measure import describe_machine
from .report import markdown_lines, say_machine, write_record
from .suite import Suite

CONDITIONAL, DINO = 'group_cond_detr_r50_12e', 'group_dino_4scale_r50_12e'
COLUMNS = ('detector', 'attention', 'batch', 'mode', 'K', 'ms a step', 'images/s', 'peak MiB')


class Job(NamedTuple):
    """A case on a config, a batch size, and the way to compute deformable attention."""
    config: str
    case: Case
    batch_size: int
    attention: str = ''


def make_jobs(num_groups: int, batch_sizes: List[int], ways: List[str]) -> List[Job]:
    """List what is measured."""

    def cases(modes: Dict[str, int], num_queries: int) -> List[Case]:
        return [Case('step', mode, amp, k, num_queries, 7)
                for amp in (None, 'bf16') for mode, k in modes.items()]

    several = dict(plain=num_groups, ours=num_groups, turns=num_groups, stock=1)
    jobs = [Job(CONDITIONAL, case, size) for size in batch_sizes for case in cases(several, 300)]
    jobs += [Job(CONDITIONAL, case, batch_sizes[0]) for case in cases(dict(ours=1), 300)]
    jobs += [Job(DINO, case, batch_sizes[0], way) for way in ways
             for case in cases(dict(ours=num_groups, turns=num_groups), 900)]
    return jobs + [Job(DINO, case, batch_sizes[0], 'mmcv') for case in cases(dict(stock=1), 900)]


def attention_by(way: str) -> ContextManager:
    """Compute deformable attention by mmcv's PyTorch code, or by ours in parts."""
    return mmcv_attention() if way == 'mmcv' else contextlib.nullcontext()


def measure(job: Job, cfg: Config, image_size: tuple, device: torch.device,
            rounds: int) -> Dict[str, Any]:
    """Measure a job; what does not fit has no numbers, and says so."""
    shapes, seconds, peak = Shapes(job.batch_size, image_size), None, None
    try:
        with attention_by(job.attention):
            results = Suite(cfg, [job.case], shapes, device).measure(rounds, 2, [job.case])
        seconds = results.seconds(job.case)['total']
        peak = results.peak[job.case]
    except torch.cuda.OutOfMemoryError:
        pass
    finally:
        torch.cuda.empty_cache()
    return dict(config=job.config, attention=job.attention, batch_size=job.batch_size,
                mode=job.case.name, num_groups=job.case.num_groups, seconds=seconds,
                peak_memory=peak)


def make_page(rows: List[Dict[str, Any]], machine: Dict[str, Any]) -> str:
    """Write what was measured as a table."""

    def cell(value: Optional[float], text: str) -> str:
        return 'out of memory' if value is None else text.format(value)

    table = []
    for row in rows:
        seconds, peak = row['seconds'], row['peak_memory']
        table.append((row['config'], row['attention'], row['batch_size'], row['mode'],
                      row['num_groups'], cell(seconds and 1e3 * seconds, '{:.0f}'),
                      cell(seconds and row['batch_size'] / seconds, '{:.1f}'),
                      cell(peak and peak / 2**20, '{:.0f}')))
    return '\n'.join((say_machine(machine), '', *markdown_lines(COLUMNS, table), ''))


def parse_args() -> argparse.Namespace:
    parser = make_parser('benchmarks.gpu_table', __doc__, '--image-size', '--rounds', '--device',
                         tf32=True)
    parser.add_argument('--groups', type=positive, default=11, help='K')
    parser.add_argument('--batch-sizes', nargs='+', type=positive, default=[2, 8])
    parser.add_argument('--configs', nargs='+', choices=[CONDITIONAL, DINO],
                        default=[CONDITIONAL, DINO])
    parser.add_argument('--out', type=Path, default=Path('gpu_table'),
                        help='OUT.md and OUT.json are written (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    device = prepare(args)
    configs = {name: load_config(name) for name in args.configs}
    rows, machine = [], describe_machine(device)
    for job in make_jobs(args.groups, args.batch_sizes, ['mmcv', 'parts']):
        if job.config not in configs:
            continue
        rows.append(measure(job, configs[job.config], tuple(args.image_size), device,
                            args.rounds))
        # After each: what was measured stays, also when the machine is taken away.
        write_atomically(args.out.with_suffix('.md'), make_page(rows, machine).encode())
        write_record(args.out.with_suffix('.json'), 'benchmarks.gpu_table',
                     dict(machine=machine, rows=rows))
    print(make_page(rows, machine))


if __name__ == '__main__':
    end_in_one_line(main)
