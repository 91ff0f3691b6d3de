"""Draw AP by epoch and by hour, and losses, of several runs; print the epochs and hours until each
reached the final AP of the first run, the baseline."""
import argparse

from ..analysis.plots import prepare_picture
from ..analysis.runs import comparison, draw_runs, read_run
from ..errors import ConfigError
from .common import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR',
                        help='work directories of runs, the baseline first')
    parser.add_argument('--labels', nargs='+', metavar='LABEL',
                        help='names of the runs (default: the names of the directories)')
    parser.add_argument('--out', default='runs.png',
                        help='picture to write, .png, .svg, .pdf or .jpg (default: %(default)s)')


def main(args: argparse.Namespace) -> None:
    labels = args.labels or [None] * len(args.work_dirs)
    if len(labels) != len(args.work_dirs):
        raise ConfigError(f'--labels: {len(labels)} labels for {len(args.work_dirs)} runs; give '
                          'each run a label.')
    prepare_picture(args.out)
    runs = [read_run(*x) for x in zip(args.work_dirs, labels)]
    print_table(*comparison(runs))
    draw_runs(runs, args.out)
    print('Wrote', args.out)
