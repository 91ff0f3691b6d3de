"""Train a detector on the data of a config, of a folder of images and labels or of a label file.

For the latter two this writes a config first, as ``prepare`` does.
"""
import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from shlex import quote

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process

from ..checkpoints.named import best_checkpoint, find_checkpoint, last_checkpoint
from ..checkpoints.resume import announce_new_start
from ..data.layouts import is_data
from ..config import WEIGHTS
from ..errors import ConfigError
from ..io import check_path, lock_work_dir
from ..training import dry_run, options
from ..training.processes import end_with_launcher, launched_rank
from ..training.progress import run_training
from . import prepare
from .common import add_runner_arguments, load_config, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runner_arguments(parser, 'config file, the name of a shipped config, or a folder of '
                         'images and labels, or a label file')
    prepare.add_choices(parser)
    add = parser.add_argument
    add('--dry-run', action='store_true',
        help='time a few steps, and say what the whole training will take')
    add('--epochs', type=int, metavar='N',
        help='how long to train; the learning rate falls at the same part of it')
    add('--batch-size', type=int, metavar='N', help='images of a process at a time; gradients are '
        'added up until an update has as many images as the config says')
    add('--ema', action='store_true', help='average the weights of all steps')
    add('--early-stop', type=int, metavar='N', help='end after N validations that were not better')
    add('--tensorboard', action='store_true', help='write TensorBoard logs, too')
    add('--wandb', action='store_true', help='log to Weights & Biases, too')
    add('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    add('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    add('--allow-missing', action='store_true',
        help='begin with those tensors of load_from that fit the model')
    add('--resume', nargs='?', const='auto', metavar='CHECKPOINT', help='continue from this '
        'checkpoint, or without a value from the last one in the work directory')


def config_of_data(args: argparse.Namespace) -> str:
    """Name of the config: CONFIG, or for a folder or label file the config that is prepared."""
    given = [f'--{name.replace("_", "-")}' for name in prepare.DEFAULTS
             if getattr(args, name) is not None]
    if not is_data(args.config) or args.config.endswith(WEIGHTS):
        if given:
            raise ConfigError(f'{given[0]} is for a folder of images or a label file, and CONFIG '
                              f'{args.config} is a config: leave {given[0]} out.')
        return args.config
    out = prepare.default_out(args.config)
    if not out.exists() and args.launcher != 'none':
        raise ConfigError(f'CONFIG {args.config} is data, and several processes need a config:'
                          f' run groupdetr prepare {args.config} first.')
    if not out.exists():
        prepare.prepare(args, args.config, out)
    elif given:
        raise ConfigError(f'{given[0]} would change {out}, which is there already: leave it out, '
                          'or remove the file.')
    elif not prepare.was_prepared(out, args.config):
        raise ConfigError(f'CONFIG {args.config}: {out} is there already, and was prepared for '
                          f'other data: train {out}, or remove it.')
    else:
        print(f'Going on with {out}, which an earlier run wrote for {args.config}.')
    return str(out)


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    """Change the config as the arguments ask."""
    options.keep_best(cfg)
    options.add_hook(cfg, type='OtherClassesHook')
    if args.epochs is not None:
        options.set_epochs(cfg, args.epochs)
    if args.batch_size is not None:
        options.set_batch_size(cfg, args.batch_size)
    if args.auto_scale_lr:
        options.set_auto_scale_lr(cfg)
    options.scale_for_accumulation(cfg)
    if args.ema:
        options.average_weights(cfg)
    if args.early_stop is not None:
        options.stop_early(cfg, args.early_stop)
    for backend in ('Tensorboard', 'Wandb'):
        if getattr(args, backend.lower()):
            options.log_to(cfg, backend)
    if args.resume:
        cfg.resume = True
        cfg.load_from = (None if args.resume in ('auto', 'last') else
                         find_checkpoint(args.resume, cfg.work_dir))
    if not os.path.isdir(cfg.get('load_from') or ''):  # as DeepSpeed's checkpoints are
        check_path('--resume' if cfg.get('resume') else 'load_from', cfg.get('load_from'))
    cfg.allow_missing = args.allow_missing or cfg.get('allow_missing', False)
    options.fetch_once(cfg)


def show_next(args: argparse.Namespace, work_dir: Path) -> None:
    """Say where the result is, and what to do with it."""
    best = best_checkpoint(work_dir)
    written = best or last_checkpoint(work_dir)
    if written is None:
        return
    # These names mean the work directory that the config says.
    name = quote(str(written)) if args.work_dir else 'best' if best else 'last'
    config = quote(args.config)
    print(f'Wrote {written}.\n'
          f'Next: groupdetr test {config} {name}\n'
          f'      groupdetr predict IMAGES {config} {name} --out found\n'
          f'      groupdetr report {quote(str(work_dir))}')


def main(args: argparse.Namespace) -> None:
    args.config = config_of_data(args)
    cfg = load_config(args)
    apply_options(cfg, args)
    if dry_run.is_slow(cfg):
        print(f'There is no GPU, and {args.config} takes long without one: groupdetr train '
              f'{quote(args.config)} --dry-run says how long, {dry_run.SMALL_CONFIG} is a small '
              'config, and groupdetr prepare DATA --model small writes one.')
    if args.dry_run:
        print_table((f'{dry_run.TIMED} steps on {get_device()}', ''), dry_run.measure(cfg))
        return
    if args.launcher == 'pytorch':
        end_with_launcher()
    with ExitStack() as stack:
        if launched_rank() == 0:
            stack.enter_context(lock_work_dir(cfg.work_dir))
            if not cfg.get('resume'):
                announce_new_start(cfg.work_dir)
        runner = run_training(cfg)
    if is_main_process():
        show_next(args, Path(os.path.relpath(runner.work_dir)))
