"""Measure what turns cost: memory and time of a training step by K, all groups at once and one
after the other, and the bounds that the package is to keep."""
from pathlib import Path
from typing import List, Tuple

from mmengine.config import Config

from groupdetr_mmdet.commands.cli import end_in_one_line

from .arguments import RUNNING, load_config, make_parser, prepare
from .cases import Case, Shapes
from .plots import draw_costs
from .report import report
from .suite import Row, Suite

GROUPS = (1, 2, 5, 11, 22)
# family -> shipped config, channels of the backbone that its neck takes, and the image
FAMILIES = dict(
    conditional=('group_cond_detr_r50_12e', [512], (480, 640)),
    dino=('group_dino_4scale_r50_12e', [128, 256, 512], (320, 416)))


def resnet18_config(family: str) -> Tuple[Config, Shapes]:
    """The shipped config of a family with a ResNet-18, and two images."""
    name, channels, image_size = FAMILIES[family]
    cfg = load_config(name)
    cfg.model.backbone.depth = 18
    cfg.model.neck.in_channels = channels
    return cfg, Shapes(2, image_size)


def plan(family: str, cfg: Config) -> Tuple[List[Case], List[Row]]:
    """Return what is measured of a family, and what its steps are to cost at most."""

    def step(mode: str, num_groups: int) -> Case:
        return Case('step', mode, None, num_groups, cfg.model.num_queries, 7)

    def row(what: str, case: Case, other: Case, bound: float, memory: bool = True) -> Row:
        return Row(what, case, other, bound, more=False, memory=memory)

    ours, turns, stock = step('ours', 11), step('turns', 11), step('stock', 1)
    time = row('time, K = 11, in turns / at once', turns, ours, 1.45, memory=False)
    if family == 'dino':
        return [stock, ours, turns], [
            row('memory, K = 11 in turns / stock', turns, stock, 1.35),
            row('memory, K = 11 at once / stock', ours, stock, 2.7), time]
    return [step(mode, k) for k in GROUPS for mode in ('ours', 'turns')], [
        row('memory, in turns, K = 11 / K = 1', turns, step('ours', 1), 1.5),
        row('memory, in turns, K = 22 / K = 11', step('turns', 22), turns, 1.25), time]


def main() -> None:
    parser = make_parser('benchmarks.turns', __doc__, *RUNNING)
    parser.add_argument('--families', nargs='+', choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument('--out', type=Path, default=Path('turns'), help='folder of FAMILY.json, '
                        'and FAMILY.png where several K are measured (default: %(default)s)')
    args = parser.parse_args()
    device = prepare(args)
    for family in args.families:
        cfg, shapes = resnet18_config(family)
        cases, bounds = plan(family, cfg)
        results = Suite(cfg, cases, shapes, device, own_processes=True).measure(
            args.rounds, 1, cases)
        path = args.out / f'{family}.json'
        report(results, shapes, device, bounds, path, 'benchmarks.turns')
        if family == 'conditional':  # of several K
            draw_costs(path, path.with_suffix('.png'))


if __name__ == '__main__':
    end_in_one_line(main)
