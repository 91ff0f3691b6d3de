"""Train a detector."""
import argparse

from mmengine.config import Config
from mmengine.device import get_device

from ..errors import ConfigError
from ..host.preflight import check_config
from ..host.runner import build_runner
from .common import add_runner_arguments, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_runner_arguments(parser)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the batch size')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='continue from this checkpoint, or without a value from the last one in the work '
        'directory')


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


def main(args: argparse.Namespace) -> None:
    cfg = load_config(args)
    keep_checkpoints_whole(cfg)
    if args.amp:
        set_amp(cfg)
    if args.auto_scale_lr:
        set_auto_scale_lr(cfg)
    if args.resume:
        set_resume(cfg, args.resume)
    check_config(cfg, modes=('train', 'val'))
    build_runner(cfg).train()
