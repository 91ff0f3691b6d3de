"""Evaluate a detector."""
import argparse

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.dist import is_main_process

from ..io import check_output, check_path
from ..analysis.group_metrics import draw_groups, evaluate_each_group, record_groups, split_groups
from ..analysis.plots import save_picture
from ..checkpoints.named import find_checkpoint
from ..training.runner import build_runner
from .common import CHECKPOINT, add_runner_arguments, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runner_arguments(parser)
    add = parser.add_argument
    add('checkpoint', help=CHECKPOINT)
    add('--all-groups', action='store_true', help='evaluate every group of queries in one pass, '
        'and record beside the checkpoint which is best, for --query-group best of other commands')
    add('--out', help='pickle file (.pkl) to write the predictions to')
    add('--show', action='store_true', help='show the predictions in a window')
    add('--show-dir', help='directory for pictures of the predictions, made inside the work '
        'directory of this run')
    add('--wait-time', type=float, default=2, help='seconds that --show shows a picture')


def main(args: argparse.Namespace) -> None:
    if args.out:
        check_output('--out', args.out, 'a pickle file', ('.pkl', '.pickle'))
    cfg = load_config(args)
    args.checkpoint = find_checkpoint(args.checkpoint, cfg.work_dir)
    check_path('CHECKPOINT', args.checkpoint)
    cfg.load_from = args.checkpoint
    if args.all_groups:
        evaluate_each_group(cfg)
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    runner = build_runner(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    metrics = runner.test()
    if args.all_groups and '://' not in args.checkpoint and is_main_process():
        record = record_groups(args.checkpoint, metrics)
        picture = record.with_suffix('.png')
        save_picture(draw_groups(split_groups(metrics)), picture, dpi=110)
        print(f'Wrote {record} and {picture}')
