"""What the commands of this folder share: arguments, config, and how a mistake ends."""
import argparse
import os
import sys
import time
from pathlib import Path
from typing import Callable

# The commands run from a clone that is not installed, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import Runner

from groupdetr_mmdet import GroupQueries
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.evaluation import choose_group
from groupdetr_mmdet.loading import load_weights, read_checkpoint
from groupdetr_mmdet.preflight import check_path
from groupdetr_mmdet.queries import check_groups


def make_parser(description: str) -> argparse.ArgumentParser:
    """Parser of the arguments that every command with a config and a runner has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='directory of logs, checkpoints and metrics')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction,
        help='settings that override the config, as key=value; a list is written key="[a,b]" or '
        'key=a,b, and may hold tuples: key="[(a,b),(c,d)]"')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
        help='what started this process, if it is one of several')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help='given by some launchers; has no other use')
    return parser


def load_config(args: argparse.Namespace) -> Config:
    """Read the config file and merge the shared arguments into it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    check_path('CONFIG', args.config)
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not cfg.get('work_dir'):
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    return cfg


def load_inference_config(args: argparse.Namespace) -> Config:
    """Read the config file and merge ``--cfg-options`` and ``--query-group`` into it.

    Raises:
        ConfigError: If a group is asked of a detector without groups.
    """
    check_path('CONFIG', args.config)
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    if args.query_group is not None:
        check_groups(f'--query-group {args.query_group}', cfg.model)
        group = choose_group(args.query_group, args.checkpoint)
        cfg.merge_from_dict({'model.test_cfg.query_group': group})
    return cfg


def build_runner(cfg: Config) -> Runner:
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def load_detector(cfg: Config, checkpoint: str) -> GroupQueries:
    """Build a detector with groups for inference, with the weights of a checkpoint."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    check_groups('CONFIG', cfg.model)
    detector = MODELS.build(cfg.model)
    load_weights(detector, read_checkpoint(checkpoint), checkpoint)
    return detector.to(get_device()).eval()


def run(main: Callable[[], None]) -> None:
    """Run a command; a user's mistake ends with its sentence and status 2."""
    try:
        main()
    except ConfigError as error:
        # Before the processes meet, the first one says the same, and the launcher then ends this
        # one. Later a mistake may be known to this one alone, as that in an image of its share.
        if os.environ.get('LOCAL_RANK', '0') != '0' and not is_distributed():
            time.sleep(10)
        # One that comes out of a data loader's worker carries the worker's traceback.
        print('error:', str(error).rsplit('ConfigError: ')[-1].strip(), file=sys.stderr)
        sys.exit(2)
