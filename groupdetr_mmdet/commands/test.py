"""Evaluate a detector on the test data of a config."""
import argparse
import numbers
import os
from typing import Any, Dict

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmengine.dist import is_main_process

from ..io import check_output, check_path
from ..analysis.group_metrics import (draw_groups, evaluate_each_group, groups_table,
                                      metric_title, record_groups, split_groups)
from ..analysis.plots import save_picture
from ..training.options import augment_test
from ..training.progress import shown_runner
from ..training.runner import RunConfig, for_test
from .common import (CHECKPOINT, add_runner_arguments, load_trained, print_table,
                     work_dir_of)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runner_arguments(parser)
    add = parser.add_argument
    add('checkpoint', help=CHECKPOINT)
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of('--all-groups', action='store_true', help='evaluate every group of queries in '
           'one pass, and record the best beside the checkpoint, for --query-group best of '
           'other commands')
    one_of('--tta', action='store_true', help='test-time augmentation, by tta_model and '
           'tta_pipeline of the config, or by flips; requires the compiled ops of mmcv')
    add('--out', help='pickle file (.pkl) to write the predictions to')
    add('--show', action='store_true', help='show the predictions in a window')
    add('--show-dir', help='directory for pictures of the predictions, inside the work '
        'directory of this run')
    add('--wait-time', type=float, default=2, help='seconds between pictures of --show')


def load_config(args: argparse.Namespace) -> RunConfig:
    """Read the config of a checkpoint, and set the options of the arguments."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = for_test(load_trained(args), args.checkpoint)
    check_path('CHECKPOINT', args.checkpoint)
    cfg.update(launcher=args.launcher, work_dir=work_dir_of(cfg, args))
    if args.all_groups:
        evaluate_each_group(cfg)
    if args.tta:
        augment_test(cfg)
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> None:
    if args.out:
        check_output('--out', args.out, 'a pickle file', ('.pkl', '.pickle'))
    cfg = load_config(args)
    with shown_runner(cfg, 'Testing') as runner:
        if args.out:
            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
        metrics = runner.test()
    if metrics and is_main_process():
        show(metrics)
    if args.all_groups and '://' not in args.checkpoint and is_main_process():
        record = record_groups(args.checkpoint, metrics)
        picture = record.with_suffix('.png')
        save_picture(draw_groups(split_groups(metrics)), picture, dpi=110)
        print(f'Wrote {record} and {picture}')


def show(metrics: Dict[str, float]) -> None:
    """Print a table of AP: a row for boxes, masks, a class, or each group."""
    groups = split_groups(metrics)
    if groups:
        header, *rows = groups_table(groups)
    else:
        table = {}
        prefixes = {name.rpartition('/')[0] for name in metrics}
        for name, value in metrics.items():
            prefix, _, name = name.rpartition('/')
            of_class = name.endswith('_precision')  # CLASS_precision; else bbox_mAP_50
            row, _, column = name.rpartition('_') if of_class else name.partition('_')
            row = f'{prefix}/{row}' if len(prefixes) > 1 else row
            table.setdefault(row, {})[metric_title(column)] = value
        columns = list(dict.fromkeys(column for row in table.values() for column in row))
        header = ['', *columns]
        rows = [[name, *(number(row.get(column)) for column in columns)]
                for name, row in table.items()]
    print_table(header, rows)


def number(value: Any) -> str:
    """Return a metric as a text; COCO's -1 means no objects."""
    return f'{value:.3f}' if isinstance(value, numbers.Real) and value != -1 else '-'
