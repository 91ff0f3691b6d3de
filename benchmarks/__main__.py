"""Measure time and memory of a detector with groups, beside a plain implementation.

Modes: `plain` (Conditional DETR alone: mmdet's bmm attention on folded groups, and its assigner
for each layer, image and group), `ours`, `turns` (ours, one group after the other), and `stock`
(mmdet's detector without groups). A mode may have an autocast type, as in ours:bf16. All modes and
numbers of groups alternate within a run.
"""
import argparse
import itertools
from dataclasses import replace
from typing import List

from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.commands.common import positive
from groupdetr_mmdet.errors import ConfigError

from .arguments import add_config, add_running, load_config, prepare
from .cases import AMP, MODES, PARTS, Case, Shapes
from .report import report
from .suite import Row, measure, measure_rows


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks', description=__doc__)
    add_config(parser)
    add_running(parser, rounds=5)
    add = parser.add_argument
    add('--table', action='store_true', help='measure every row of the table in '
        'benchmarks/README.md, instead of --parts, --modes and --memory')
    add('--parts', nargs='+', choices=PARTS, default=['decoder'],
        help='step: a whole training step; decoder: decoder, head and criterion, forward and '
        'backward, on a given memory; criterion: forward and backward on given predictions')
    add('--modes', nargs='+', default=['plain', 'ours'], metavar='MODE[:AMP]',
        choices=[*MODES, *(f'{mode}:{amp}' for mode in MODES for amp in AMP)],
        help='plain, ours, turns, stock, each with :bf16 or :fp16 for autocast; turns is for the '
        'part step')
    add('--losses', nargs='+', default=[None], metavar='LOSS', help='classification losses, such '
        'as FocalLoss IABCELoss (default: of the config)')
    add('--memory', action='store_true', help='also measure peak memory')
    add('--groups', nargs='+', type=positive, help='numbers of groups K (default: of the config)')
    add('--batch-size', type=positive, default=2)
    return parser.parse_args()


def make_cases(args: argparse.Namespace, num_queries: int) -> List[Case]:
    """Combine parts, modes, groups and losses of the arguments; stock always has one group."""
    modes = [(*mode.split(':'), None)[:2] for mode in args.modes]
    if 'turns' in dict(modes) and args.parts != ['step']:
        raise ConfigError('--modes turns: backbone and encoder run once in a step of turns; '
                          'choose --parts step.')
    return list(dict.fromkeys(
        Case(part, mode, amp, 1 if mode == 'stock' else k, num_queries, loss=loss)
        for part, k, (mode, amp), loss in itertools.product(
            args.parts, args.groups, modes, args.losses)))


def reach_table(num_groups: int, num_queries: int) -> List[Row]:
    """Return the aims for K and N."""
    criterion = Case('criterion', 'plain', None, num_groups, num_queries)
    inference = replace(criterion, part='inference', mode='ours')
    plain = replace(criterion, part='decoder', attn_drop=0.)
    ours, k = replace(plain, mode='ours'), num_groups
    return [
        Row('criterion forward + backward, plain / ours', criterion,
            replace(criterion, mode='ours'), 5.),
        Row('decoder + head + criterion, forward + backward, plain / ours, attention dropout 0',
            plain, ours, 1.5),
        Row('the same, plain in float32 / ours under bf16 autocast', plain,
            replace(ours, amp='bf16'), 3.),
        Row('the same in float32 with attention dropout 0.1, plain / ours',
            replace(plain, attn_drop=.1), replace(ours, attn_drop=.1), 1.25),
        Row('peak memory of that step, plain / ours, attention dropout 0', plain, ours, 2.,
            memory=True),
        Row(f'that step, ours, K = {k} / {k} x K = 1', ours, replace(ours, num_groups=1), .9,
            more=False, factor=k),
        Row('inference, ours / stock', inference, replace(inference, mode='stock', num_groups=1),
            1., more=False),
    ]


def main() -> None:
    args = parse_args()
    prepare(args)
    cfg = load_config(args.config, args.cfg_options)
    args.groups = args.groups or [cfg.model.num_query_groups]
    num_queries, shapes = cfg.model.num_queries, Shapes(args.batch_size, tuple(args.image_size))
    rows = reach_table(args.groups[0], num_queries) if args.table else []
    if rows:
        results = measure_rows(cfg, rows, shapes, args.device, args.rounds, 1)
    else:
        cases = make_cases(args, num_queries)
        results = measure(cfg, cases, shapes, args.device, args.rounds, 1,
                          cases if args.memory else [])
    report(results, shapes, args.device, rows, args.json, 'benchmarks')


if __name__ == '__main__':
    end_in_one_line(main)
