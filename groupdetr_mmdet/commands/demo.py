"""Generate a data set, train a small Group DETR on it, evaluate it, and write a report."""
import argparse
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List

import torch
from mmengine.config import Config

from ..analysis.report import write_report
from ..analysis.runs import read_run
from ..errors import ConfigError
from ..config import find_config, read_config
from ..data.shapes import make_shapes
from ..training.progress import run_training

CONFIG = 'demo/group_cond_detr_demo'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', nargs='?', default=CONFIG,
                        help=f'config file, or the name of a shipped config (default: {CONFIG})')
    parser.add_argument('--baseline', metavar='CONFIG', help='config to compare with, trained '
                        'at the same time in WORK_DIR/baseline; each run gets half of the cores')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder of the results')
    parser.add_argument('--data-root', default='data/shapes', help='folder of the images')
    parser.add_argument('--quick', action='store_true',
                        help='run all steps in a minute, on a few images; learns nothing')


def demo_config(args: argparse.Namespace) -> Config:
    """Read the config, and set paths and length by the arguments."""
    cfg = read_config(args.config)
    cfg.work_dir, data_root = args.work_dir, os.path.join(args.data_root, '')
    for mode in ('train', 'val', 'test'):
        cfg[f'{mode}_dataloader'].dataset.data_root = data_root
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = data_root + 'val.json'
    if args.quick:
        cfg.train_cfg.max_epochs = 1
    return cfg


@contextmanager
def training_beside(args: argparse.Namespace) -> Iterator[List[Path]]:
    """Train the baseline, if any, during the ``with`` block; yield its folder."""
    if not args.baseline:
        yield []
        return
    work_dir = Path(args.work_dir, 'baseline')
    output = work_dir / 'output.txt'
    work_dir.mkdir(parents=True, exist_ok=True)
    threads = max(1, torch.get_num_threads() // 2)
    torch.set_num_threads(threads)
    command = [sys.executable, '-m', 'groupdetr_mmdet', 'demo', args.baseline, '--work-dir',
               work_dir, '--data-root', args.data_root, *['--quick'] * args.quick]
    with open(output, 'w') as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT,
                                   env=dict(os.environ, OMP_NUM_THREADS=str(threads)))
    try:
        yield [work_dir]
        if process.poll() is None:
            print(f'Waiting for the baseline; its log is {output}.', flush=True)
        if process.wait():
            raise ConfigError(f'--baseline: {args.baseline} ended with status '
                              f'{process.returncode}; read {output}.')
    finally:
        process.terminate()


def reached(work_dir: Path) -> str:
    """Return the AP of the last validation of a run, of boxes and masks."""
    metrics = read_run(work_dir).val[-1]
    names = dict(bbox_mAP='AP', bbox_mAP_50='AP50', segm_mAP='mask AP')
    return ', '.join(f'{name} {metrics[f"coco/{key}"]:.3f}' for key, name in names.items()
                     if f'coco/{key}' in metrics)


def main(args: argparse.Namespace) -> None:
    start = time.time()
    if args.baseline:
        args.baseline = find_config(args.baseline, '--baseline')
    cfg = demo_config(args)
    make_shapes(args.data_root, **(dict(num_train=32, num_val=16) if args.quick else {}))
    with training_beside(args) as compare:
        runner = run_training(cfg)
    folder = Path(os.path.relpath(runner.work_dir))
    labels = [Path(config).stem for config in (args.baseline, args.config) if config]
    page = write_report(folder, compare, labels)
    model = runner.model
    print(f'\n{type(model).__name__}: {model.num_query_groups} groups of {model.num_queries} '
          f'queries, {runner.max_epochs} epoch{"s" * (runner.max_epochs > 1)} of '
          f'{len(runner.train_dataloader.dataset)} images, '
          f'{(time.time() - start) / 60:.1f} minutes in all.')
    print(f'{reached(folder)} on {len(runner.val_dataloader.dataset)} validation '
          'images.')
    print(*(f'{reached(baseline)} with the baseline.\n' for baseline in compare), end='')
    print(f'Open\n  {page}: curves, AP of each group, detections and queries\n'
          f'  {os.path.relpath(runner.log_dir)}: log of the training')
