"""Write a report of a run as one HTML page that needs no network: curves, AP of every group,
detections beside the ground truth, queries, config and environment."""
import argparse
from pathlib import Path

from ..analysis.report import write_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('work_dir', metavar='WORK_DIR', help='work directory of a run')
    parser.add_argument('--compare', nargs='+', default=[], metavar='WORK_DIR',
                        help='runs to compare with, the baseline first (default: '
                        'WORK_DIR/baseline, if it exists)')
    parser.add_argument('--labels', nargs='+', metavar='LABEL',
                        help='names of the runs of --compare, then of WORK_DIR')
    parser.add_argument('--checkpoint',
                        help='a file, best or last (default: best, if it exists)')
    parser.add_argument('--out', help='file to write (default: WORK_DIR/report.html)')


def main(args: argparse.Namespace) -> None:
    work_dir, compare = Path(args.work_dir), [Path(x) for x in args.compare]
    baseline = work_dir / 'baseline'
    if not (compare or args.labels) and any(baseline.glob('*/vis_data/scalars.json')):
        compare = [baseline]
    out_file = write_report(work_dir, compare, args.labels or (), args.checkpoint,
                            args.out and Path(args.out))
    print('Wrote', out_file)
