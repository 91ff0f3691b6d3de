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
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np
from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from groupdetr_mmdet.analysis.runs import AP, read_run
from groupdetr_mmdet.checkpoints.named import find_checkpoint, last_checkpoint
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.config import read_config
from groupdetr_mmdet.data.shapes import make_shapes
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.io import write_atomically
from groupdetr_mmdet.training import options
from groupdetr_mmdet.training.progress import run_training

RESULTS = Path(__file__).with_name('evidence.json')
Results = Dict[str, Dict[str, Any]]
SEEDS = (0, 1, 2)
QUIET = 0.1  # part of the steps that other processes slow down least
SHAPES, CELLS = 'demo/group_cond_detr_demo', 'group_cond_detr_mbv2_bccd'
SMALL_CELLS = 'demo/group_cond_detr_bccd_demo'
NAIVE = 'ablation/group_cond_detr_naive_demo'
JOINT = 'ablation/group_cond_detr_joint_attn_demo'
EPOCHS = {SHAPES: 8, NAIVE: 8, JOINT: 8, CELLS: 12, SMALL_CELLS: 30}


class Training(NamedTuple):
    """One training."""
    study: str  # the question that it is for
    label: str  # what its curve is called; trainings of one label differ in their seeds
    seed: int  # of the weights, the order of the images and their flips
    num_groups: int  # K
    epochs: int
    config: str = SHAPES  # name of a shipped config
    settings: Dict[str, Any] = {}  # what else is set in the config
    start: Optional[str] = None  # name of the training whose last weights it begins with

    @property
    def name(self) -> str:
        return f'{self.study}/{self.label}/{self.seed}'


def several(study: str, num_groups: tuple, seeds: tuple, config: str = SHAPES, label: str = '',
            **kwargs) -> List[Training]:
    """Trainings of several K and seeds for the epochs of their config."""
    return [Training(study, f'K = {k}{label}', seed, k, EPOCHS[config], config, **kwargs)
            for seed in seeds for k in num_groups]


def make_studies(results: Results) -> Dict[str, List[Training]]:
    """Return the trainings of each study."""
    by_k = several('by-k', (1, 2, 3, 6, 11), SEEDS)
    stock = Training('fine-tuning', 'pretraining', 0, 1, 20, settings={'model.num_queries': 40})
    fine_tuning = [stock, *several('fine-tuning', (1, 3, 6, 11), SEEDS[:2], SMALL_CELLS,
                                   start=stock.name)]
    for noise in (.5, 1.):
        fine_tuning += several('fine-tuning', (6, ), SEEDS[:2], SMALL_CELLS,
                               f', new_group_noise={noise:g}', start=stock.name,
                               settings={'model.new_group_noise': noise})
    ablation = [Training('ablation', label, 0, k, 8, config) for label, k, config in (
        ('naive, K = 6', 6, NAIVE), ('naive, K = 11', 11, NAIVE),
        ('joint attention, K = 6', 6, JOINT))]
    return {'by-k': by_k, 'fine-tuning': fine_tuning, 'ablation': ablation,
            'equal-time': equal_time(by_k, results),
            'bfloat16': several('bfloat16', (6, ), SEEDS[:2], settings={
                'optim_wrapper.type': 'BFloat16OptimWrapper'}),
            'cells': several('cells', (1, 3, 11), SEEDS[:2], CELLS)}


def equal_time(by_k: List[Training], results: Results) -> List[Training]:
    """Every K for as long as K = 6 takes for the epochs of ``by_k``, once that was measured."""
    seconds = {k: [results[x.name]['seconds_per_step'] for x in by_k
                   if x.num_groups == k and x.name in results] for k in (1, 3, 6, 11)}
    if not all(seconds.values()):
        return []
    epochs = {k: round(EPOCHS[SHAPES] * float(np.median(seconds[6]) / np.median(seconds[k])))
              for k in (1, 3, 11)}
    return [Training('equal-time', f'K = {k}', seed, k, epochs[k]) for seed in SEEDS
            for k in epochs]


@HOOKS.register_module()
class CpuTimeHook(Hook):
    """Log the CPU seconds of each step, which other processes change little."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.start = time.process_time()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        runner.message_hub.update_scalar('train/cpu_time', time.process_time() - self.start)


def training_config(training: Training, args: argparse.Namespace) -> Config:
    """Config of a training, with data, backbone and work directories as the arguments name."""
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
    for hook in ('CpuTimeHook', 'OtherClassesHook'):
        options.add_hook(cfg, type=hook)
    cfg.resume = last_checkpoint(Path(cfg.work_dir)) is not None
    return cfg


def train(training: Training, args: argparse.Namespace) -> Dict[str, Any]:
    """Run a training in this process, or go on with it; ``curve`` is of (epoch, AP, AP50)."""
    run_training(training_config(training, args))
    run = read_run(args.work_dir / training.name)
    return dict(
        num_groups=training.num_groups, epochs=training.epochs, seed=training.seed,
        seconds_per_step=float(np.quantile([entry['cpu_time'] for entry in run.train], QUIET)),
        steps_per_epoch=run.train[-1]['step'] / run.train[-1]['epoch'],
        curve=[[entry['step'], entry[AP], entry[f'{AP}_50']] for entry in run.val])


def run_alone(training: Training, args: argparse.Namespace) -> Dict[str, Any]:
    """Run a training in a process of its own, of one thread; its output goes into a file."""
    work_dir = args.work_dir / training.name
    work_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'benchmarks.evidence', *sys.argv[1:], '--job', training.name]
    with open(work_dir / 'output.txt', 'a') as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT,
                              env=dict(os.environ, OMP_NUM_THREADS='1'))
    if done.returncode:
        raise ConfigError(f'{training.name} ended with status {done.returncode}: read '
                          f'{work_dir}/output.txt.')
    return json.loads((work_dir / 'result.json').read_text())


def run_study(trainings: List[Training], args: argparse.Namespace) -> None:
    """Run the trainings of a study that the file does not have, and add them to it."""
    missing = [x for x in trainings if x.name not in read_results(args.results)]
    first = [x for x in missing if any(x.name == other.start for other in missing)]
    for stage in (first, [x for x in missing if x not in first]):
        with ThreadPoolExecutor(args.jobs) as pool:
            for training, result in zip(stage, pool.map(lambda x: run_alone(x, args), stage)):
                results = dict(read_results(args.results), **{training.name: result})
                lines = (f'{json.dumps(key)}: {json.dumps(results[key])}'
                         for key in sorted(results))
                write_atomically(args.results, ('{\n' + ',\n'.join(lines) + '\n}\n').encode())
                print(f'{training.name}: AP {result["curve"][-1][1]:.3f}', flush=True)


def read_results(file: Path) -> Results:
    return json.loads(file.read_text()) if file.exists() else {}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.evidence', description=__doc__)
    add = parser.add_argument
    add('--studies', nargs='+', choices=make_studies({}), default=list(make_studies({})))
    add('--jobs', type=int, default=1, help='trainings at a time, a core each')
    add('--shapes', type=Path, default=Path('data/shapes'), help='folder of generated images')
    add('--cells', type=Path, default=Path('data/bccd'), help='see docs/blood-cells.md')
    add('--backbone', default='open-mmlab://mmdet/mobilenet_v2', help='weights for the cells')
    add('--work-dir', type=Path, default=Path('work_dirs/evidence'))
    add('--results', type=Path, default=RESULTS, help='JSON file to which results are added')
    add('--job', help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.job:  # in the process that run_alone started
        trainings = make_studies(read_results(args.results))[args.job.split('/')[0]]
        result = train(next(x for x in trainings if x.name == args.job), args)
        write_atomically(args.work_dir / args.job / 'result.json', json.dumps(result).encode())
        return
    make_shapes(str(args.shapes))
    for name in args.studies:
        run_study(make_studies(read_results(args.results))[name], args)


if __name__ == '__main__':
    end_in_one_line(main)
