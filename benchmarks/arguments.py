"""Arguments that several benchmarks share."""
import argparse
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import init_default_scope

from groupdetr_mmdet.commands.common import CONFIG, add_cfg_options, positive
from groupdetr_mmdet.config import check_groups, merge_options, read_config
from groupdetr_mmdet.io import check_output


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help=CONFIG)
    add_cfg_options(parser)


def add_running(parser: argparse.ArgumentParser, rounds: int) -> None:
    add = parser.add_argument
    add('--image-size', nargs=2, type=positive, default=[800, 1066], metavar=('H', 'W'))
    add('--rounds', type=positive, default=rounds, help='timed runs of a case (%(default)s)')
    add('--device', type=torch.device, default=get_device())
    add('--threads', type=positive, help='of the CPU')
    add('--tf32', action='store_true', help='use TF32 on a GPU')
    add('--json', type=Path, metavar='FILE', help='write everything there')


def prepare(args: argparse.Namespace) -> None:
    """Check the file to write, and set threads and precision."""
    if args.json:  # before the measurement
        check_output('--json', args.json)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32


def load_config(config: str, options: Optional[Dict[str, Any]] = None) -> Config:
    """Read the config of a detector with groups, and set a default K in it."""
    cfg = read_config(config)
    merge_options(cfg, options)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    check_groups('CONFIG', cfg.model)
    if 'num_query_groups' not in cfg.model:
        cfg.model.num_query_groups = MODELS.build(cfg.model).num_query_groups
    return cfg
