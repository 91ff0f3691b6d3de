"""Train a detector: on what a config says, or on a folder of images and labels, for which this
writes a config first, as ``prepare`` does."""
import argparse
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device

from ..errors import ConfigError
from ..host.preflight import check_config
from ..host.runner import build_runner
from . import prepare
from .common import add_runner_arguments, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runner_arguments(parser, 'config file, the name of a shipped config, or a folder of '
                         'images and labels')
    prepare.add_choices(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='continue from this checkpoint, or without a value from the last one in the work '
        'directory')


def config_of_data(args: argparse.Namespace) -> str:
    """Name of the config: what CONFIG says, or for a folder of images the one that prepares it.

    Raises:
        ConfigError: If the folder cannot be prepared now, or arguments of that come with a config.
    """
    given = [name for name in prepare.DEFAULTS if getattr(args, name) is not None]
    if not Path(args.config).is_dir():
        if given:
            raise ConfigError(f'--{given[0].replace("_", "-")} is for a folder of images, and '
                              f'CONFIG {args.config} is none: leave it out.')
        return args.config
    out = prepare.default_out(args.config)
    if not out.exists() and args.launcher != 'none':
        raise ConfigError(f'CONFIG {args.config} is a folder, and several processes need a config:'
                          f' run groupdetr prepare {args.config} first.')
    if not out.exists():
        prepare.prepare(args, args.config, out)
    elif given:
        raise ConfigError(f'--{given[0].replace("_", "-")} would change {out}, which is there '
                          'already: leave it out, or remove the file.')
    else:
        print(f'Going on with {out}, which an earlier run wrote for {args.config}.')
    return str(out)


def set_amp(cfg: Config) -> None:
    if get_device() == 'cpu':
        raise ConfigError('--amp: mixed precision of mmengine needs a GPU and there is none; '
                          'leave --amp out.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def set_auto_scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ConfigError('--auto-scale-lr: the config does not say auto_scale_lr.base_batch_size;'
                          ' set it to the batch size that the learning rate was chosen for.')
    cfg.auto_scale_lr.enable = True


def set_resume(cfg: Config, resume: str) -> None:
    cfg.resume = True
    cfg.load_from = None if resume == 'auto' else resume


def keep_checkpoints_whole(cfg: Config) -> None:
    """Where the config has mmengine's hook, take ours, which a kill at any moment cannot hurt."""
    hooks = cfg.setdefault('default_hooks', {})
    hook = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if hook and hook['type'] == 'CheckpointHook':
        hook['type'] = 'AtomicCheckpointHook'


def leave_other_classes(cfg: Config) -> None:
    """Say in one line that weights of other classes lack their class layers."""
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='OtherClassesHook')]


def main(args: argparse.Namespace) -> None:
    args.config = config_of_data(args)
    cfg = load_config(args)
    keep_checkpoints_whole(cfg)
    leave_other_classes(cfg)
    if args.amp:
        set_amp(cfg)
    if args.auto_scale_lr:
        set_auto_scale_lr(cfg)
    if args.resume:
        set_resume(cfg, args.resume)
    check_config(cfg, modes=('train', 'val'))
    build_runner(cfg).train()
