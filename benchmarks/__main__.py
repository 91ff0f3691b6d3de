"""Measure time and memory of a detector with groups, beside the straightforward way to write it.

Modes: `plain` (mmdet's bmm attention on folded groups, its assigner called per layer, image and
group; Conditional DETR alone), `ours`, `turns` (ours, one group after the other), and `stock`
(mmdet's detector without groups). A mode may say its autocast type, as in ours:bf16. All modes and
numbers of groups take turns within one run.
"""
import argparse
import itertools
from typing import List, Optional, Tuple

from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.errors import ConfigError

from .arguments import RUNNING, load_config, make_parser, positive, prepare
from .cases import AMP, MODES, PARTS, STRIDE, Case, Shapes
from .reach import Row, reach_table
from .report import report
from .suite import Suite


def parse_args() -> argparse.Namespace:
    parser = make_parser('benchmarks', __doc__, 'config', '--image-size', *RUNNING, '--json',
                         rounds=5)
    what = parser.add_argument_group('what to measure')
    what.add_argument('--table', action='store_true',
                      help='measure every row of the table in benchmarks/README.md; takes the '
                      'place of --parts, --modes, --attn-drop and --memory')
    what.add_argument('--parts', nargs='+', choices=PARTS, default=['decoder'],
                      help='step: a whole training step; decoder: decoder, head and criterion, '
                      'forward and backward, on a given memory; criterion: forward and backward '
                      'on given predictions')
    what.add_argument('--modes', nargs='+', default=['plain', 'ours'], metavar='MODE[:AMP]',
                      help='plain, ours, turns, stock, each with :bf16 or :fp16 for autocast; '
                      'turns is for the part step')
    what.add_argument('--memory', action='store_true', help='measure peak memory, too')
    sizes = parser.add_argument_group('sizes')
    sizes.add_argument('--groups', nargs='+', type=positive, help='K; that of the config')
    sizes.add_argument('--queries', nargs='+', type=positive,
                       help='N, queries of a group; that of the config')
    sizes.add_argument('--objects', nargs='+', type=int, default=[7], help='of each image')
    sizes.add_argument('--batch-size', type=positive, default=2)
    sizes.add_argument('--memory-size', nargs=2, type=positive, metavar=('H', 'W'),
                       help=f'for the part decoder; image size / {STRIDE}')
    sizes.add_argument('--padded', action='store_true',
                       help='make every second image narrower, so that there is a padding mask')
    sizes.add_argument('--attn-drop', type=float, help='dropout of attention weights')
    parser.add_argument('--warmup', type=int, default=1, help='runs before those that are timed')
    return parser.parse_args()


def parse_mode(text: str) -> Tuple[str, Optional[str]]:
    mode, _, amp = text.partition(':')
    if mode not in MODES or amp not in ('', *AMP):
        raise ConfigError(f'--modes: {text} is none; choose from {", ".join(MODES)}, each with '
                          f'or without :{" or :".join(AMP)}.')
    return mode, amp or None


def make_cases(args: argparse.Namespace) -> List[Case]:
    """Combine all that the arguments name; stock has one group, whatever they say."""
    modes = [parse_mode(text) for text in args.modes]
    if any(mode == 'turns' for mode, _ in modes) and args.parts != ['step']:
        raise ConfigError('--modes: turns are of a whole step, in which backbone and encoder run '
                          'once; choose --parts step.')
    return list(dict.fromkeys(
        Case(part, mode, amp, 1 if mode == 'stock' else k, n, objects, args.attn_drop)
        for part, n, objects, k, (mode, amp) in itertools.product(
            args.parts, args.queries, args.objects, args.groups, modes)))


def make_table(args: argparse.Namespace) -> List[Row]:
    for name in ('groups', 'queries', 'objects'):
        values = getattr(args, name)
        if len(values) > 1:
            raise ConfigError(f'--{name}: {values} are several, and --table takes one; '
                              'leave --table out to compare them.')
    return reach_table(*args.groups, *args.queries, *args.objects)


def main() -> None:
    args = parse_args()
    cfg, device = load_config(args.config, args.cfg_options), prepare(args)
    args.groups = args.groups or [cfg.model.num_query_groups]
    args.queries = args.queries or [cfg.model.num_queries]
    memory_size = args.memory_size or [-(-x // STRIDE) for x in args.image_size]
    shapes = Shapes(args.batch_size, tuple(args.image_size), tuple(memory_size), args.padded)
    if args.table:
        reach = make_table(args)
        cases = list(dict.fromkeys(case for row in reach for case in (row.case, row.other)))
        memory = [case for row in reach if row.memory for case in (row.case, row.other)]
    else:
        reach, cases = [], make_cases(args)
        memory = cases if args.memory else []
    results = Suite(cfg, cases, shapes, device).measure(args.rounds, args.warmup, memory)
    report(results, shapes, device, reach, args.json, 'benchmarks')


if __name__ == '__main__':
    end_in_one_line(main)
