"""Measure memory and time of a training step in turns, compared with all groups at once and with
mmdet's detector, beside their bounds. ResNet-18, two images."""
import argparse
from pathlib import Path
from typing import List

from groupdetr_mmdet.commands.cli import end_in_one_line

from .arguments import add_running, load_config, prepare
from .cases import Case, Shapes
from .report import report
from .suite import Row, measure_rows

# family -> shipped config, channels of the backbone that its neck takes, and the image
FAMILIES = dict(
    conditional=('group_cond_detr_r50_12e', [512], (480, 640)),
    dino=('group_dino_4scale_r50_12e', [128, 256, 512], (320, 416)))


def plan(family: str, num_queries: int) -> List[Row]:
    """Return what a family's steps are to cost at most."""
    stock, one, ours, turns, twice = (
        Case('step', mode, None, num_groups, num_queries) for mode, num_groups in (
            ('stock', 1), ('ours', 1), ('ours', 11), ('turns', 11), ('turns', 22)))
    memory = [('memory, K = 11 in turns / stock', turns, stock, 1.35),
              ('memory, K = 11 at once / stock', ours, stock, 2.7)] if family == 'dino' else [
                  ('memory, in turns, K = 11 / K = 1', turns, one, 1.5),
                  ('memory, in turns, K = 22 / K = 11', twice, turns, 1.25),
                  ('memory, K = 11, in turns / at once', turns, ours, 1 / 3)]
    return [*(Row(*row, more=False, memory=True) for row in memory),
            Row('time, K = 11, in turns / at once', turns, ours, 1.45, more=False)]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.turns', description=__doc__)
    add_running(parser, rounds=1)
    parser.add_argument('--families', nargs='+', choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument('--out', type=Path, default=Path('turns'),
                        help='folder of FAMILY.json (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    prepare(args)
    for family in args.families:
        name, channels, image_size = FAMILIES[family]
        cfg, shapes = load_config(name), Shapes(2, image_size)
        cfg.model.backbone.depth, cfg.model.neck.in_channels = 18, channels
        rows = plan(family, cfg.model.num_queries)
        results = measure_rows(cfg, rows, shapes, args.device, args.rounds, 0)
        report(results, shapes, args.device, rows, args.out / f'{family}.json',
               'benchmarks.turns')


if __name__ == '__main__':
    end_in_one_line(main)
