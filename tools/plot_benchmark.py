"""Draw time and memory against the number of groups K from the JSON of tools/benchmark.py."""
import argparse

from _cli import run

from groupdetr_mmdet.cost_plots import draw_costs, read_costs
from groupdetr_mmdet.plots import prepare_picture


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('json', metavar='JSON', help='what tools/benchmark.py --json wrote, of '
                        'several --groups, with --memory for the memory')
    parser.add_argument('--out', default='costs.png',
                        help='picture to write, .png, .svg, .pdf or .jpg (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    prepare_picture(args.out)
    draw_costs(*read_costs(args.json), args.out)
    print('Wrote', args.out)


if __name__ == '__main__':
    run(main)
