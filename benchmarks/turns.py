"""Measure what turns cost: memory and time of a training step by K, all groups at once and one
after the other, and the bounds that the package is to keep."""
import argparse
from pathlib import Path
from typing import List, Tuple

from mmengine.config import Config
from mmengine.registry import init_default_scope

from groupdetr_mmdet.analysis.plots import prepare_picture
from groupdetr_mmdet.commands.cli import end_mistakes
from groupdetr_mmdet.host.configs import read_config
from groupdetr_mmdet.host.preflight import check_output

from .arguments import add_running_arguments, prepare_device
from .cases import Case, Shapes
from .plots import draw_costs, read_costs
from .reach import Row
from .report import report
from .suite import Suite

GROUPS = (1, 2, 5, 11, 22)
# family -> shipped config, channels of the backbone that its neck takes, and the image
FAMILIES = dict(
    conditional=('group_cond_detr_r50_12e', [512], (480, 640)),
    dino=('group_dino_4scale_r50_12e', [128, 256, 512], (320, 416)))


def resnet18_config(family: str) -> Tuple[Config, Shapes]:
    """The shipped config of a family with a ResNet-18, and two images."""
    name, channels, image_size = FAMILIES[family]
    cfg = read_config(name)
    cfg.model.backbone.depth = 18
    cfg.model.neck.in_channels = channels
    init_default_scope('mmdet')
    return cfg, Shapes(2, image_size)


def step(mode: str, num_groups: int, cfg: Config) -> Case:
    return Case('step', mode, None, num_groups, cfg.model.num_queries, 7)


def bounds(family: str, cfg: Config) -> List[Row]:
    """What a step is to cost at most."""

    def row(what: str, case: Case, other: Case, bound: float, memory: bool = True) -> Row:
        return Row(what, case, other, bound, more=False, memory=memory)

    ours, turns = (step(mode, 11, cfg) for mode in ('ours', 'turns'))
    time = row('time, K = 11, in turns / at once', turns, ours, 1.45, memory=False)
    if family == 'dino':
        stock = step('stock', 1, cfg)
        return [row('memory, K = 11 in turns / stock', turns, stock, 1.35),
                row('memory, K = 11 at once / stock', ours, stock, 2.7), time]
    return [row('memory, in turns, K = 11 / K = 1', turns, step('ours', 1, cfg), 1.5),
            row('memory, in turns, K = 22 / K = 11', step('turns', 22, cfg), turns, 1.15), time]


def cases(family: str, cfg: Config) -> List[Case]:
    if family == 'dino':
        return [step('stock', 1, cfg), step('ours', 11, cfg), step('turns', 11, cfg)]
    return [step(mode, k, cfg) for k in GROUPS for mode in ('ours', 'turns')]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.turns', description=__doc__)
    parser.add_argument('--families', nargs='+', choices=FAMILIES, default=list(FAMILIES))
    add_running_arguments(parser, rounds=3)
    parser.add_argument('--out', type=Path, default=Path('turns'),
                        help='FAMILY.json is written there, and FAMILY.png where several K are '
                        'measured (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for family in args.families:
        check_output('--out', args.out / f'{family}.json')
    device = prepare_device(args)
    for family in args.families:
        cfg, shapes = resnet18_config(family)
        measured = cases(family, cfg)
        suite = Suite(cfg, measured, shapes, device, own_processes=True)
        results = suite.measure(args.rounds, 1, measured)
        path = args.out / f'{family}.json'
        print(cfg.model.type)
        report(results, shapes, device, bounds(family, cfg), path, 'benchmarks.turns')
        if len({case.num_groups for case in measured if case.mode != 'stock'}) > 1:
            picture = path.with_suffix('.png')
            prepare_picture(str(picture))
            draw_costs(*read_costs(path), picture)


if __name__ == '__main__':
    end_mistakes(main)
