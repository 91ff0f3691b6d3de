"""Arguments and configs of several commands."""
import argparse
import os
from pathlib import Path
from typing import Iterable, Sequence

from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..analysis.group_metrics import choose_group, query_group
from ..checkpoints.named import find_checkpoint
from ..config import Options, check_groups, merge_options, read_config

CONFIG = 'config file, or the name of a shipped config'
CHECKPOINT = 'checkpoint file, or best or last of the training of CONFIG'


def positive(text: str) -> int:
    """Parse an integer of at least 1, as the type of an argument."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} must be at least 1')
    return int(text)


def add_runner_arguments(parser: argparse.ArgumentParser, config: str = CONFIG) -> None:
    """Add the arguments that every command with a config and a runner has."""
    parser.add_argument('config', help=config)
    add_cfg_options(parser)
    parser.add_argument('--work-dir', help='directory of logs, checkpoints and metrics')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='what started this process, if it is one of several')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help='given by some launchers; has no other use')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument('--cfg-options', nargs='+', action=Options, help='settings that override '
                        'the config, as key=value; a list is written key="[a,b]" or key=a,b, and '
                        'may hold tuples: key="[(a,b),(c,d)]"')


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`load_inference_config`."""
    parser.add_argument('config', metavar='CONFIG', help=CONFIG)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help=CHECKPOINT)
    parser.add_argument('--query-group', type=query_group, metavar='I',
                        help='group of queries to use, instead of model.test_cfg.query_group; '
                        'best: the one that groupdetr test --all-groups found')
    add_cfg_options(parser)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config file and merge the shared arguments into it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = read_config(args.config)
    cfg.launcher = args.launcher
    merge_options(cfg, args.cfg_options)
    cfg.work_dir = args.work_dir or default_work_dir(cfg, args.config)
    return cfg


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of texts."""
    table = Table(*map(escape, header))
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def default_work_dir(cfg: Config, config: str) -> str:
    """Return the work directory of a config, without ``--work-dir``."""
    return cfg.get('work_dir') or str(Path('work_dirs', Path(config).stem))


def load_inference_config(args: argparse.Namespace) -> Config:
    """Read the config file, merge the shared arguments into it, and find the checkpoint."""
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    args.checkpoint = find_checkpoint(args.checkpoint, default_work_dir(cfg, args.config))
    if args.query_group is not None:
        check_groups(f'--query-group {args.query_group}', cfg.model)
        group = choose_group(args.query_group, args.checkpoint)
        cfg.merge_from_dict({'model.test_cfg.query_group': group})
    return cfg
