"""Arguments and configs that several commands share."""
import argparse
from pathlib import Path
from typing import Any, Iterable, Sequence

from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..analysis.group_metrics import choose_group, query_group
from ..checkpoints.named import POINTER, find_checkpoint, trained_config
from ..config import Options, check_groups, datasets_of, merge_options, read_config
from ..errors import ConfigError

CONFIG = 'config file, or the name of a shipped config'
CHECKPOINT = ('checkpoint file, or best or last in the work directory of CONFIG; the config that '
              'the training wrote beside it replaces CONFIG')
EVALUATED = 'model', 'test_dataloader', 'test_evaluator', 'test_cfg'  # determine detections and AP


def positive(text: str) -> int:
    """Parse an integer of at least 1, the ``type`` of an argument."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text} must be at least 1')
    return int(text)


def add_runner_arguments(parser: argparse.ArgumentParser, config: str = CONFIG) -> None:
    """Add the arguments of commands with a config and a runner."""
    parser.add_argument('config', help=config)
    add_cfg_options(parser)
    parser.add_argument('--work-dir', help='directory of logs, checkpoints and metrics')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='launcher of several processes')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help='rank on this machine, set by some launchers')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument('--cfg-options', nargs='+', action=Options, help='override keys of the '
                        'config, key=value; lists as key="[a,b]" or key=a,b, of tuples as '
                        'key="[(a,b),(c,d)]"')


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of :func:`load_inference_config`."""
    parser.add_argument('config', metavar='CONFIG', help=CONFIG)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help=CHECKPOINT)
    parser.add_argument('--query-group', type=query_group, metavar='I',
                        help='group of queries to use, instead of model.test_cfg.query_group; '
                        'best: the best group of groupdetr test --all-groups')
    add_cfg_options(parser)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of texts."""
    table = Table()
    for name in header:
        table.add_column(escape(name), overflow='fold')
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def work_dir_of(cfg: Config, args: argparse.Namespace) -> str:
    """Return the work directory of the arguments, else of the config, else ``work_dirs/NAME``.

    The work directory of a config that a training wrote is its folder, also after a move.
    """
    folder = Path(cfg.filename or '').parent
    return (getattr(args, 'work_dir', None) or (args.cfg_options or {}).get('work_dir') or
            str(folder) * Path(folder, POINTER).is_file() or
            cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem)))


def load_trained(args: argparse.Namespace, of_this_name: bool = False) -> Config:
    """Find the checkpoint, and read the config that its training wrote, else the named config.

    Prints a line if the two configs detect or evaluate differently. With ``of_this_name`` the
    config of the training must have the name of the named config.
    """
    cfg = named = read_config(args.config)
    name, folder = args.checkpoint, Path(work_dir_of(named, args))
    args.checkpoint = find_checkpoint(name, folder)
    if name == args.checkpoint:  # a file, which may be copied
        folder = Path(name).parent
    file = trained_config(args.checkpoint, folder)
    if file and not (of_this_name and not (folder / Path(named.filename).name).is_file()):
        cfg = read_config(str(file))
        cfg.work_dir = str(folder)
        differing = [key for key in EVALUATED if plain(cfg, key) != plain(named, key)]
        if differing:
            print(f'Using {file}, which the training wrote; {args.config} differs in '
                  f'{", ".join(differing)}. To use {args.config}, copy the checkpoint to another '
                  'folder.')
    merge_options(cfg, args.cfg_options)
    return cfg


def plain(cfg: Config, key: str) -> Any:
    """Return a part of a config as written in a file, without mmengine's types."""
    return Config(dict(part=cfg.get(key))).to_dict()


def check_test_data(cfg: Config, args: argparse.Namespace) -> None:
    """Take the first data set inside a wrapper as test data: its pipeline prepares the images.

    Raises:
        ConfigError: If there is no test data.
    """
    if not cfg.get('test_dataloader'):
        raise ConfigError(f'CONFIG {args.config} has no test_dataloader, whose pipeline prepares '
                          'the images: add it.')
    cfg.test_dataloader.dataset = next(datasets_of(cfg.test_dataloader))


def load_inference_config(args: argparse.Namespace) -> Config:
    """Read the config of a checkpoint, and set the group of ``--query-group``."""
    cfg = load_trained(args)
    check_test_data(cfg, args)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    if args.query_group is not None:
        check_groups(f'--query-group {args.query_group}', cfg.model)
        group = choose_group(args.query_group, args.checkpoint)
        cfg.merge_from_dict({'model.test_cfg.query_group': group})
    return cfg
