"""Print the AP that the paper reports without groups and with them, and that of your own runs."""
import argparse
from typing import List, Optional, Sequence

import yaml
from rich.table import Column

from ..analysis.runs import read_run
from ..errors import ConfigError
from ..config import SHIPPED
from .common import print_table

GROUP = 'group_'  # before the name of a baseline, the name of its config with groups
METRICS = {'box AP (paper)': 'coco/bbox_mAP', 'mask AP (paper)': 'coco/segm_mAP'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('runs', nargs='*', metavar='NAME=WORK_DIR',
                        help='work directories of trainings by the names of their configs, such '
                        'as group_cond_detr_r50_12e=work_dirs/cond')


def main(args: argparse.Namespace) -> None:
    print_table((Column('config', no_wrap=True, min_width=33), 'AP of', 'paper', 'groups',
                 'yours', 'groups'), paper_rows(args.runs))


def paper_rows(runs: Sequence[str]) -> List[List[str]]:
    """Make the rows of the table of runs ``NAME=WORK_DIR``."""
    metafile = yaml.safe_load((SHIPPED / 'metafile.yml').read_text())
    models = {model['Name']: model for model in metafile['Models'] if 'Results' in model}
    pairs = [name for name in models if GROUP + name in models]
    results = {name: next(iter(model['Results'][0]['Metrics'].items()))
               for name, model in models.items()}
    work_dirs = {}
    for run in runs:
        name, sign, work_dir = run.partition('=')
        if not sign or name.removeprefix(GROUP) not in pairs:
            raise ConfigError(f'NAME=WORK_DIR: {run} names no config of the table: write one of '
                              'its names, as group_cond_detr_r50_12e=work_dirs/cond.')
        work_dirs[name] = work_dir
    rows = []
    for name in pairs:
        (metric, paper), (_, paper_with_groups) = results[name], results[GROUP + name]
        reached = [reach(work_dirs.get(x), METRICS[metric]) for x in (name, GROUP + name)]
        rows.append([GROUP + name, metric.split()[0], f'{paper:.1f}', f'{paper_with_groups:.1f}',
                     *reached])
    return rows


def reach(work_dir: Optional[str], metric: str) -> str:
    """Return the last AP of a run in percent, and after how many epochs, '' without a run."""
    if work_dir is None:
        return ''
    val = [entry for entry in read_run(work_dir).val if metric in entry]
    if not val:
        raise ConfigError(f'NAME=WORK_DIR: {work_dir} has no {metric} in its log: evaluate while '
                          'training, by train_cfg.val_interval.')
    return f'{100 * val[-1][metric]:.1f} ({val[-1]["step"]}e)'
