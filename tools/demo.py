"""Generate a data set, train a small Group DETR on it, evaluate, and draw what it learned."""
import argparse
import os
import time
from pathlib import Path

from _cli import build_runner, run
from make_shapes import make_shapes
from mmengine.config import Config
from mmengine.runner import Runner
from report import write_report

from groupdetr_mmdet.plots import draw_curves, draw_detections, read_scalars

CONFIG = Path(__file__).resolve().parents[1] / 'configs' / 'group_cond_detr_demo.py'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='?', default=str(CONFIG),
                        help='config file; cond_detr_demo.py is the same without groups')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='where the results go')
    parser.add_argument('--data-root', default='data/shapes', help='where the images go')
    parser.add_argument('--quick', action='store_true',
                        help='a few images and one epoch: shows that it runs, learns nothing')
    return parser.parse_args()


def demo_config(args: argparse.Namespace) -> Config:
    """Config of the demo, its paths and length as the arguments say."""
    cfg = Config.fromfile(args.config)
    ann_file = str(Path(args.data_root, 'val.json'))
    cfg.merge_from_dict({
        'work_dir': args.work_dir,
        'train_dataloader.dataset.data_root': args.data_root,
        'val_dataloader.dataset.data_root': args.data_root,
        'test_dataloader.dataset.data_root': args.data_root,
        'val_evaluator.ann_file': ann_file,
        'test_evaluator.ann_file': ann_file,
    })
    if args.quick:
        cfg.train_cfg.max_epochs = 1
    return cfg


def draw(runner: Runner) -> dict:
    """Draw curves and detections.

    Returns:
        dict: What each picture shows, and its path.
    """
    folder = Path(os.path.relpath(runner.work_dir))
    pictures = {
        'detections beside the ground truth': folder / 'detections.png',
        'losses and AP of every epoch': folder / 'curves.png',
    }
    detections, curves = pictures.values()
    draw_detections(runner.model, runner.val_dataloader.dataset, detections)
    draw_curves(read_scalars(runner.log_dir), curves)
    return pictures


def report(runner: Runner, files: dict, minutes: float) -> str:
    """Say in a few lines what was reached, and which files to open."""
    metrics = [entry for entry in read_scalars(runner.log_dir) if 'coco/bbox_mAP' in entry][-1]
    lines = [
        f'{type(runner.model).__name__}: {runner.model.num_query_groups} groups of '
        f'{runner.model.num_queries} queries, {runner.max_epochs} epochs of '
        f'{len(runner.train_dataloader.dataset)} images, {minutes:.1f} minutes in all.',
        f'AP {metrics["coco/bbox_mAP"]:.3f}, AP50 {metrics["coco/bbox_mAP_50"]:.3f} on '
        f'{len(runner.val_dataloader.dataset)} images that it has never seen.',
        'Open',
    ]
    return '\n'.join(lines + [f'  {path}: {shows}' for shows, path in files.items()])


def main() -> None:
    args = parse_args()
    start = time.time()
    cfg = demo_config(args)
    sizes = dict(num_train=32, num_val=16) if args.quick else {}
    make_shapes(args.data_root, **sizes)
    runner = build_runner(cfg)
    runner.train()
    files = draw(runner)
    folder = Path(os.path.relpath(runner.work_dir))
    files['all of this and more on one page'] = write_report(folder)
    files['log of the training'] = Path(os.path.relpath(runner.log_dir))
    print('\n' + report(runner, files, minutes=(time.time() - start) / 60))


if __name__ == '__main__':
    run(main)
