"""Train what docs/choose-k.md reports: AP by K, by epochs and by time, several seeds each.

Every training runs in a process of its own, on one thread. Finished ones are kept in a JSON file,
so that the command goes on where it was stopped; the pictures and tables are made from that file.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import numpy as np
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from groupdetr_mmdet.analysis.runs import AP, read_run
from groupdetr_mmdet.checkpoints.named import find_checkpoint, last_checkpoint
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.config import read_config
from groupdetr_mmdet.io import write_atomically
from groupdetr_mmdet.data.shapes import make_shapes
from groupdetr_mmdet.training import options
from groupdetr_mmdet.training.progress import run_training

RESULTS = Path(__file__).with_name('evidence.json')
Results = Dict[str, Dict[str, Any]]
SEEDS = (0, 1, 2)
QUIET = 0.1  # part of the steps that other processes slow down least
K_ON_SHAPES = (1, 2, 3, 6, 11)
K_ON_CELLS = (1, 3, 11)
SHAPES, CELLS = 'demo/group_cond_detr_demo', 'group_cond_detr_mbv2_bccd'
SMALL_CELLS = 'demo/group_cond_detr_bccd_demo'
EPOCHS = {SHAPES: 8, CELLS: 12, SMALL_CELLS: 30}


class Training(NamedTuple):
    """One training."""
    study: str  # the question that it is for
    label: str  # what its curve is called; trainings of one label differ in their seeds
    seed: int  # of the weights, the order of the images and their flips
    num_groups: int  # K
    epochs: int
    config: str = SHAPES  # name of a shipped config
    settings: Dict[str, Any] = {}  # what else is set in the config
    amp: bool = False  # computes in bfloat16
    start: Optional[str] = None  # name of the training whose last weights it begins with

    @property
    def name(self) -> str:
        return f'{self.study}/{self.label}/{self.seed}'


def by_k(results: Results) -> List[Training]:
    """Every K after the same epochs."""
    return [Training('by-k', f'K = {k}', seed, k, EPOCHS[SHAPES])
            for seed in SEEDS for k in K_ON_SHAPES]


def equal_time(results: Results) -> List[Training]:
    """Every K for as long as K = 6 takes for the epochs of :func:`by_k`."""
    def seconds(k: int) -> float:
        runs = [results.get(run.name) for run in by_k(results) if run.num_groups == k]
        return float(np.median([run['seconds_per_step'] for run in runs if run]))

    return [Training('equal-time', f'K = {k}', seed, k,
                     round(EPOCHS[SHAPES] * seconds(6) / seconds(k)))
            for seed in SEEDS for k in (1, 3, 11)]


def cells(results: Results) -> List[Training]:
    """K on blood cells, from a backbone trained on ImageNet."""
    return [Training('cells', f'K = {k}', seed, k, EPOCHS[CELLS], CELLS)
            for seed in SEEDS[:2] for k in K_ON_CELLS]


def fine_tuning(results: Results) -> List[Training]:
    """A stock detector of shapes, fine-tuned on blood cells with and without groups."""
    stock = Training('fine-tuning', 'pretraining', 0, 1, 20, settings={'model.num_queries': 40})
    return [stock] + [
        Training('fine-tuning', f'K = {k}', seed, k, EPOCHS[SMALL_CELLS], SMALL_CELLS,
                 start=stock.name)
        for seed in SEEDS[:2] for k in (1, 3, 6, 11)] + [
        Training('fine-tuning', f'K = 6, new_group_noise={noise:g}', seed, 6,
                 EPOCHS[SMALL_CELLS], SMALL_CELLS, {'model.new_group_noise': noise},
                 start=stock.name)
        for seed in SEEDS[:2] for noise in (.5, 1.)]


def ablation(results: Results) -> List[Training]:
    """The paper's Table 7 on shapes, the naive detector with two K."""
    naive = 'ablation/group_cond_detr_naive_demo'
    joint = 'ablation/group_cond_detr_joint_attn_demo'
    return [Training('ablation', label, seed, k, EPOCHS[SHAPES], config)
            for seed in SEEDS[:1] for label, k, config in (
                ('naive, K = 6', 6, naive), ('naive, K = 11', 11, naive),
                ('joint attention, K = 6', 6, joint))]


def bfloat16(results: Results) -> List[Training]:
    """The demo in bfloat16."""
    return [Training('bfloat16', 'K = 6', seed, 6, EPOCHS[SHAPES], amp=True)
            for seed in SEEDS[:2]]


STUDIES: Dict[str, Callable[[Results], List[Training]]] = {
    'by-k': by_k, 'fine-tuning': fine_tuning, 'equal-time': equal_time, 'ablation': ablation,
    'bfloat16': bfloat16, 'cells': cells}


@HOOKS.register_module()
class CpuTimeHook(Hook):
    """Log the CPU seconds of each step, which other processes change little."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.start = time.process_time()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        runner.message_hub.update_scalar('train/cpu_time', time.process_time() - self.start)


def training_config(training: Training, args: argparse.Namespace) -> Config:
    """Config of a training, with data, backbone and work directories as the arguments say."""
    cfg = read_config(training.config)
    root = args.cells if training.config in (CELLS, SMALL_CELLS) else args.shapes
    for mode in ('train', 'val', 'test'):
        cfg[f'{mode}_dataloader'].dataset.data_root = f'{root}/'
    for mode in ('val', 'test'):
        cfg[f'{mode}_evaluator'].ann_file = str(root / 'val.json')
    if training.config == CELLS:
        cfg.model.backbone.init_cfg.checkpoint = args.backbone
    cfg.merge_from_dict(training.settings)  # hooks are added below
    cfg.work_dir = str(args.work_dir / training.name)
    cfg.model.num_query_groups = training.num_groups
    cfg.randomness.seed = training.seed
    if training.start:
        cfg.load_from = find_checkpoint('last', str(args.work_dir / training.start))
    options.set_epochs(cfg, training.epochs)
    if training.amp:
        options.set_amp(cfg)
    for hook in ('CpuTimeHook', 'OtherClassesHook'):
        options.add_hook(cfg, type=hook)
    cfg.resume = last_checkpoint(Path(cfg.work_dir)) is not None
    return cfg


def train(training: Training, args: argparse.Namespace) -> Dict[str, Any]:
    """Run a training in this process, or go on with it, and say what came out.

    Returns:
        dict: Its epochs, K, CPU seconds of a step, steps of an epoch, and a curve of
        ``[epoch, AP, AP50]``.
    """
    run_training(training_config(training, args))
    run = read_run(args.work_dir / training.name)
    return dict(
        num_groups=training.num_groups, epochs=training.epochs, seed=training.seed,
        seconds_per_step=float(np.quantile([entry['cpu_time'] for entry in run.train], QUIET)),
        steps_per_epoch=run.train[-1]['step'] / run.train[-1]['epoch'],
        curve=[[entry['step'], entry[AP], entry[f'{AP}_50']] for entry in run.val])


def run_alone(training: Training, args: argparse.Namespace) -> Dict[str, Any]:
    """Run a training in a process of its own, of one thread; its output goes into a file.

    Raises:
        ConfigError: If it fails.
    """
    work_dir = args.work_dir / training.name
    work_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'benchmarks.evidence', *sys.argv[1:], '--job', training.name]
    with open(work_dir / 'output.txt', 'a') as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT,
                              env=dict(os.environ, OMP_NUM_THREADS='1'))
    if done.returncode:
        raise ConfigError(f'{training.name} ended with status {done.returncode}; '
                          f'{work_dir}/output.txt says why.')
    return json.loads((work_dir / 'result.json').read_text())


def run_job(args: argparse.Namespace) -> None:
    """Do in a process what :func:`run_alone` asks of it."""
    trainings = STUDIES[args.job.split('/')[0]](read_results(args.results))
    result = train(next(x for x in trainings if x.name == args.job), args)
    write_atomically(args.work_dir / args.job / 'result.json', json.dumps(result).encode())


def cost(training: Training) -> float:
    """Roughly how long a training takes, in any unit, for the time that remains."""
    return training.epochs * (1 + training.num_groups / 4) * (4 if training.config == CELLS else 1)


def run_study(trainings: List[Training], args: argparse.Namespace, progress: Progress) -> None:
    """Run the trainings of a study that the file does not have, and add them to it."""
    missing = [x for x in trainings if x.name not in read_results(args.results)]
    task = progress.add_task(trainings[0].study, total=sum(map(cost, missing)))
    first = [x for x in missing if any(x.name == other.start for other in missing)]
    for stage in (first, [x for x in missing if x not in first]):
        with ThreadPoolExecutor(args.jobs) as pool:
            for training, result in zip(stage, pool.map(lambda x: run_alone(x, args), stage)):
                add_result(args.results, training.name, result)
                progress.advance(task, cost(training))


def read_results(file: Path) -> Results:
    return json.loads(file.read_text()) if file.exists() else {}


def add_result(file: Path, name: str, result: Dict[str, Any]) -> None:
    results = dict(read_results(file), **{name: result})
    lines = (f'{json.dumps(key)}: {json.dumps(results[key])}' for key in sorted(results))
    write_atomically(file, ('{\n' + ',\n'.join(lines) + '\n}\n').encode())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.evidence', description=__doc__)
    parser.add_argument('--studies', nargs='+', choices=STUDIES, default=list(STUDIES))
    parser.add_argument('--jobs', type=int, default=1, help='trainings at a time, a core each')
    parser.add_argument('--shapes', type=Path, default=Path('data/shapes'),
                        help='where the generated images go (default: %(default)s)')
    parser.add_argument('--cells', type=Path, default=Path('data/bccd'),
                        help='blood cells, see docs/blood-cells.md (default: %(default)s)')
    parser.add_argument('--backbone', default='open-mmlab://mmdet/mobilenet_v2',
                        help='weights for the blood cells (default: %(default)s)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/evidence'))
    parser.add_argument('--results', type=Path, default=RESULTS,
                        help='file of what came out, to which is added (default: %(default)s)')
    parser.add_argument('--job', help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.job:
        return run_job(args)
    make_shapes(str(args.shapes))
    columns = (TextColumn('{task.description}'), BarColumn(), TextColumn('{task.percentage:.0f}%'),
               TimeElapsedColumn(), TextColumn('eta'), TimeRemainingColumn())
    with Progress(*columns) as progress:
        for name in args.studies:
            run_study(STUDIES[name](read_results(args.results)), args, progress)


if __name__ == '__main__':
    end_in_one_line(main)
