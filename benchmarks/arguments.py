"""Arguments that several scripts of this room take."""
import argparse
from typing import Any, Dict, Optional

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope

from groupdetr_mmdet.commands.common import CONFIG, add_cfg_options
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.host.configs import merge_options, read_config
from groupdetr_mmdet.host.preflight import check_groups


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} is not positive')
    return int(text)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a config, options that override it, and the size of the images."""
    parser.add_argument('config', help=CONFIG)
    add_cfg_options(parser)
    parser.add_argument('--image-size', nargs=2, type=positive, default=[800, 1066],
                        metavar=('H', 'W'))


def add_running_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add how often and where something is measured."""
    parser.add_argument('--rounds', type=positive, default=rounds,
                        help='timed runs of each (default: %(default)s)')
    parser.add_argument('--device', default=get_device())
    parser.add_argument('--threads', type=positive, help='of the CPU')
    parser.add_argument('--tf32', action='store_true', help='let a GPU multiply float32 as TF32')


def prepare_device(args: argparse.Namespace) -> torch.device:
    """Set the number of threads and the precision that the arguments say."""
    device = torch.device(args.device)
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('--device: torch finds no GPU; choose --device cpu.')
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    return device


def load_config(config: str, options: Optional[Dict[str, Any]] = None) -> Config:
    """Read the config of a detector with groups, which says their number."""
    cfg = read_config(config)
    merge_options(cfg, options)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    check_groups('CONFIG', cfg.model)
    if 'num_query_groups' not in cfg.model:  # the detector knows its default
        cfg.model.num_query_groups = MODELS.build(cfg.model).num_query_groups
    return cfg
