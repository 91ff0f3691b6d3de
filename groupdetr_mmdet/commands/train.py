"""Train a detector by a config; or on a folder of images and labels or a label file, for which it
writes a config as `groupdetr prepare` does."""
import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from shlex import quote

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from ..analysis.runs import read_run
from ..checkpoints.named import best_checkpoint, find_checkpoint, last_checkpoint
from ..checkpoints.resume import announce_new_start
from ..data.layouts import is_data
from ..config import WEIGHTS, check_groups, merge_options, read_config
from ..errors import ConfigError
from ..io import check_path, lock_work_dir
from ..training import dry_run, options
from ..training.processes import end_with_launcher, launched_rank
from ..training.progress import run_training
from ..training.runner import RunConfig
from . import prepare
from .common import add_runner_arguments, positive, print_table, work_dir_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runner_arguments(parser, 'config file, the name of a shipped config, or a folder of '
                         'images and labels, or a label file')
    prepare.add_choices(parser)
    add = parser.add_argument
    add('--dry-run', action='store_true',
        help='train a few steps, and forecast time and memory of the training')
    add('--epochs', type=positive, metavar='N',
        help='length of the training; the learning rate drops at the same fraction')
    add('--batch-size', type=positive, metavar='N', help='images of a step in each process; '
        "gradient accumulation keeps the config's number of images of an update")
    add('--ema', action='store_true', help='average the weights of all steps')
    add('--early-stop', type=positive, metavar='N',
        help='end after N validations without a better result')
    add('--tensorboard', action='store_true', help='also write TensorBoard logs')
    add('--wandb', action='store_true', help='also log to Weights & Biases')
    add('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    add('--auto-scale-lr', action='store_true',
        help='scale the learning rate with the images of an update')
    add('--allow-missing', action='store_true',
        help='load only the tensors of load_from that fit the model')
    add('--resume', nargs='?', const='auto', metavar='CHECKPOINT', help='continue from this '
        'checkpoint, or without a value from the last checkpoint in the work directory')


def config_of_data(args: argparse.Namespace) -> str:
    """Return CONFIG; for a folder or label file, write a config and return its name."""
    given = [f'--{name.replace("_", "-")}' for name in prepare.DEFAULTS
             if getattr(args, name) is not None]
    if not is_data(args.config) or args.config.endswith(WEIGHTS):
        if given:
            raise ConfigError(f'{given[0]} is for a folder of images or a label file, and CONFIG '
                              f'{args.config} is a config: leave {given[0]} out.')
        return args.config
    out = prepare.default_out(args.config)
    if not out.exists():
        if args.launcher != 'none':
            raise ConfigError(f'CONFIG {args.config} is data, and several processes require a '
                              f'config: run groupdetr prepare {args.config} first.')
        prepare.prepare(args, args.config, out)
    elif given or not prepare.was_prepared(out, args.config):
        why = f'{given[0]} would change it' if given else 'was prepared for other data'
        raise ConfigError(f'{out} exists, and {why}: train {out}, or remove it.')
    else:
        print(f'Using {out}, which an earlier run wrote for {args.config}.')
    return str(out)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config, and set the options of the arguments."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
    cfg.work_dir = work_dir_of(cfg, args)
    options.keep_best(cfg)
    options.add_hook(cfg, type='OtherClassesHook')
    for value, change in ((args.epochs, options.set_epochs),
                          (args.batch_size, options.set_batch_size),
                          (args.early_stop, options.stop_early)):
        if value:
            change(cfg, value)
    if args.auto_scale_lr:
        cfg.auto_scale_lr = dict(cfg.get('auto_scale_lr') or {}, enable=True)
    if args.amp:
        options.set_amp(cfg)
    if args.ema:
        options.average_weights(cfg)
    for backend in ('Tensorboard', 'Wandb'):
        if getattr(args, backend.lower()):
            options.log_to(cfg, backend)
    cfg.allow_missing = args.allow_missing or cfg.get('allow_missing', False)
    return cfg


def start_run(cfg: Config, args: argparse.Namespace) -> Config:
    """Add settings of this start alone, which the run does not record."""
    cfg = RunConfig(cfg)
    cfg.launcher = args.launcher
    options.scale_for_accumulation(cfg)
    if args.resume:
        cfg.resume = True
        cfg.load_from = (None if args.resume in ('auto', 'last') else
                         find_checkpoint(args.resume, cfg.work_dir))
    # Checkpoints of DeepSpeed and transformers are folders.
    check_path('--resume' if cfg.get('resume') else 'load_from', cfg.get('load_from'),
               folder=None)
    options.fetch_once(cfg)
    return cfg


def can_report(cfg: Config, work_dir: Path) -> bool:
    """Return whether ``groupdetr report`` takes a run: of groups, with a log of validations."""
    try:
        check_groups('model', cfg.model)
        return bool(read_run(work_dir).val)
    except ConfigError:
        return False


def show_next(args: argparse.Namespace, runner: Runner) -> None:
    """Print the checkpoint and the next commands."""
    work_dir = Path(os.path.relpath(runner.work_dir))
    # Else a best checkpoint there is of an earlier run
    has_best = any(x.startswith('best_ckpt') for x in runner.message_hub.runtime_info)
    best = best_checkpoint(work_dir) if has_best else None
    written = best or last_checkpoint(work_dir)
    if written is None:
        return
    # `best` and `last` are searched in the default work directory.
    own = not args.work_dir and 'work_dir' not in (args.cfg_options or {})
    name = ('best' if best else 'last') if own else quote(str(written))
    config = quote(args.config)
    print(f'Wrote {written}.\n'
          f'Next: groupdetr test {config} {name}\n'
          f'      groupdetr predict IMAGES {config} {name} --out found' +
          f'\n      groupdetr report {quote(str(work_dir))}' *
          bool(best and can_report(runner.cfg, work_dir)))


def main(args: argparse.Namespace) -> None:
    args.config = config_of_data(args)
    cfg = start_run(load_config(args), args)
    if dry_run.is_slow(cfg):
        print(f'No GPU was found, and {args.config} is slow on a CPU. --dry-run forecasts the '
              f'time; {dry_run.SMALL_CONFIG} is a small config, and groupdetr prepare DATA '
              '--model small writes a small config.')
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
        show_next(args, runner)
