"""Print the AP that the paper reports without groups and with them, and that of your own runs."""
import argparse
from typing import Dict, List, Optional, Sequence

import yaml
from rich.table import Column

from ..analysis.runs import read_run
from ..errors import ConfigError
from ..host.configs import SHIPPED
from .common import print_table

GROUP = 'group_'  # before the name of a baseline, the name of its config with groups
METRICS = {'box AP (paper)': 'coco/bbox_mAP', 'mask AP (paper)': 'coco/segm_mAP'}
HEADER = ('config', 'epochs', 'AP of', 'paper', 'groups', 'yours', 'groups')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('runs', nargs='*', metavar='NAME=WORK_DIR',
                        help='work directories of trainings by the names of their configs, such '
                        'as group_cond_detr_r50_12e=work_dirs/cond')


def main(args: argparse.Namespace) -> None:
    print_table((Column(HEADER[0], no_wrap=True, min_width=33), *HEADER[1:]),
                paper_rows(args.runs))


def paper_rows(runs: Sequence[str]) -> List[List[str]]:
    """Make the rows of the table, whose header is ``HEADER``, of runs ``NAME=WORK_DIR``."""
    metafile = yaml.safe_load((SHIPPED / 'metafile.yml').read_text())
    models = {model['Name']: model for model in metafile['Models'] if 'Results' in model}
    pairs = [name for name in models if GROUP + name in models]
    known = [*pairs, *(GROUP + name for name in pairs)]
    work_dirs = dict(split_run(run, known) for run in runs)
    rows = []
    for name in pairs:
        metric, paper = only_result(models[name])
        reached = [reach(work_dirs.get(x), METRICS[metric]) for x in (name, GROUP + name)]
        rows.append([GROUP + name, str(models[name]['Metadata']['Epochs']), metric.split()[0],
                     f'{paper:.1f}', f'{only_result(models[GROUP + name])[1]:.1f}', *reached])
    return rows


def only_result(model: Dict) -> tuple:
    """Return name and value of a config's metric."""
    result, = model['Results']
    return next(iter(result['Metrics'].items()))


def split_run(run: str, known: Sequence[str]) -> tuple:
    """Split ``NAME=WORK_DIR``, where NAME is one of the names in the table."""
    name, sign, work_dir = run.partition('=')
    if not sign or name not in known:
        raise ConfigError(f'NAME=WORK_DIR: {run} names no config of the table: write one of its '
                          'names, as group_cond_detr_r50_12e=work_dirs/cond.')
    return name, work_dir


def reach(work_dir: Optional[str], metric: str) -> str:
    """Return the last AP of a run in percent, and after how many epochs, '' without a run."""
    if work_dir is None:
        return ''
    val = [entry for entry in read_run(work_dir).val if metric in entry]
    if not val:
        raise ConfigError(f'NAME=WORK_DIR: {work_dir} has no {metric} in its log: evaluate while '
                          'training, by train_cfg.val_interval.')
    return f'{100 * val[-1][metric]:.1f} ({val[-1]["step"]} epochs)'
