"""Compare runs: their curves, and the time to reach the baseline's AP."""
import json
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple, Union

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..errors import ConfigError
from ..training.options import AP
from .plots import line_style, save_picture

INSTABILITY = 'instability/mean'


class Run(NamedTuple):
    """The scalars of a run, joined over resumptions."""
    label: str  #: name in pictures
    metric: str  #: metric to compare, COCO's AP of boxes or the data set's
    unit: str  #: 'epoch' or 'iteration', of validations
    train: List[dict]  #: with ``loss``, ``step`` (iterations), ``units``, ``hours``
    val: List[dict]  #: with ``metric``, ``step`` (of the unit), ``hours`` of training
    stability: List[dict]  #: of ``MatchingStabilityHook``, with ``step`` (epochs)
    folder: Path  #: folder of the last log, beside its ``config.py``


def read_run(work_dir: Union[str, Path], label: Optional[str] = None) -> Run:
    """Read the scalars of mmengine's ``LocalVisBackend``.

    Args:
        work_dir (str | Path): Work directory, or the folder of one start in it.
        label (str, optional): Defaults to the name of the directory.

    Raises:
        ConfigError: If there is no log.
    """
    work_dir = Path(work_dir)
    files = sorted(work_dir.glob('vis_data/scalars.json')) or sorted(
        work_dir.glob('*/vis_data/scalars.json'))
    logs = {file.parent: read_log(file) for file in files}
    trained = [folder for folder, log in logs.items() if any('loss' in entry for entry in log)]
    if not trained:
        raise ConfigError(f'WORK_DIR {work_dir} has no */vis_data/scalars.json of a run; '
                          'name the --work-dir of groupdetr train, with LocalVisBackend among '
                          'vis_backends.')
    metric = next((x for log in logs.values() for entry in log if (x := main_metric(entry))), AP)
    by_iteration = any([number_validations(log) for log in logs.values()]) or any(
        'epoch' not in entry for log in logs.values() for entry in log if 'loss' in entry)
    unit = 'iteration' if by_iteration else 'epoch'
    run = Run(label or work_dir.resolve().name, metric, unit, *(
        join_logs([[entry for entry in log if key in entry and entry['step']]
                   for log in logs.values()])
        for key in ('loss', metric, INSTABILITY)), trained[-1])
    add_hours(run)
    return run


def read_log(file: Path) -> List[dict]:
    """Read the entries of a ``scalars.json``; a killed run may have truncated the last entry."""
    lines, entries = file.read_text(errors='replace').splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise ConfigError(f'{file} is damaged in line {number}: remove it.') from error
    return entries


def main_metric(entry: dict) -> Optional[str]:
    """Return the name of a validation's main metric, None for other entries."""
    names = [name for name in entry if '/' in name]
    if 'loss' in entry or INSTABILITY in entry or not names:
        return None
    return next((name for name in (AP, *names) if name in names and name.endswith(('AP', 'PQ'))),
                names[0])


def number_validations(log: Sequence[dict]) -> bool:
    """Give validations after training the step 0, an iteration-based run's, their iteration."""
    found, iteration = False, 0
    for entry in log:
        if 'loss' in entry:
            iteration = entry['step']
        elif not entry['step'] and iteration:
            entry['step'], found = iteration, True
    return found


def join_logs(logs: Sequence[List[dict]]) -> List[dict]:
    """Join the logs of a resumed run; a later log may repeat the end of the log before."""
    joined: List[dict] = []
    for log in filter(None, logs):
        joined = [entry for entry in joined if entry['step'] < log[0]['step']] + log
    return joined


def add_hours(run: Run) -> None:
    """Add ``hours`` of training, without validation, and ``units`` to the entries."""
    length = 1 if run.unit == 'iteration' else max(  # of an epoch, as far as logged
        entry['step'] / entry['epoch'] for entry in run.train)
    hours, step = [0.], [0]
    for entry in run.train:
        hours.append(hours[-1] + entry['time'] * max(entry['step'] - step[-1], 0) / 3600)
        step.append(entry['step'])
        entry.update(hours=hours[-1], units=entry['step'] / length)
    per_step = hours[-1] / step[-1]
    for entry in run.val:  # the last iterations of the run need not be in the log
        done = entry['step'] * length
        entry['hours'] = float(np.interp(done, step, hours)) + max(done - step[-1], 0) * per_step


def comparison(runs: Sequence[Run]) -> Tuple[List[str], List[List[str]]]:
    """Make a table of epochs and hours until each run reached the first run's final AP."""
    metric, unit = runs[0].metric, runs[0].unit
    for run in runs:
        if not run.val or run.metric != metric:
            raise ConfigError(f'WORK_DIR: the run {run.label} has no {metric} in its log; leave '
                              'it out, or wait for its first validation.')
        if run.unit != unit:
            raise ConfigError(f'WORK_DIR: the run {run.label} was validated by {run.unit} and '
                              f'{runs[0].label} by {unit}: compare runs of the same loop.')
    target, name = runs[0].val[-1][metric], 'AP' if metric == AP else metric
    header = ['run', f'{unit}s', 'hours', f'final {name}', f'best {name}',
              f'{unit}s to {name} {target:.3f}', f'hours to {name} {target:.3f}']
    rows = []
    for run in runs:
        last, best = run.val[-1], max(entry[metric] for entry in run.val)
        reached = [[str(entry['step']), f'{entry["hours"]:.3g}']
                   for entry in run.val if entry[metric] >= target] or [['never', 'never']]
        rows.append([run.label, str(last['step']), f'{last["hours"]:.3g}', f'{last[metric]:.3f}',
                     f'{best:.3f}', *reached[0]])
    return header, rows


def draw_runs(runs: Sequence[Run], out_file: Union[str, Path]) -> None:
    """Draw AP by epoch and by hour, losses, and the instability if it was logged."""
    panels = panels_of(runs)
    fig, axes = plt.subplots(1, len(panels), squeeze=False, layout='constrained',
                             figsize=(4.2 * len(panels), 3.8))
    for ax, panel in zip(axes[0], panels):
        draw_panel(ax, panel, runs)
    save_picture(fig, out_file, dpi=110)


# title (the paper's Figures 1 and 5) -> entries of a run, key on the x axis, labels of the axes
PANELS = {
    'AP by {unit}': ('val', 'step', '{unit}', 'AP (IoU 0.50:0.95)'),
    'AP by time': ('val', 'hours', 'hours of training', 'AP (IoU 0.50:0.95)'),
    'Loss': ('train', 'units', '{unit}', 'loss, all decoder layers'),
    'Instability of the matching': ('stability', 'step', 'epoch', 'changed queries of an image'),
}


def panels_of(runs: Sequence[Run]) -> List[str]:
    """Return the names of the pictures with data."""
    return [name for name, (kind, *_) in PANELS.items() if any(getattr(x, kind) for x in runs)]


def draw_panel(ax: Axes, panel: str, runs: Sequence[Run]) -> None:
    """Draw one of ``PANELS`` for all runs."""
    kind, x, xlabel, ylabel = PANELS[panel]
    metric = runs[0].metric
    panel, xlabel = (text.format(unit=runs[0].unit) for text in (panel, xlabel))
    y = dict(train='loss', val=metric, stability=INSTABILITY)[kind]
    if kind == 'val' and metric != AP:
        panel, ylabel = panel.replace('AP', metric), metric
    dots = {} if kind == 'train' else dict(marker='o', markersize=3)
    for i, run in enumerate(runs):
        entries = getattr(run, kind)
        ax.plot([entry[x] for entry in entries], [entry[y] for entry in entries],
                label=run.label, **line_style(i), **dots)
    ax.set(title=panel, xlabel=xlabel, ylabel=ylabel, xlim=(0, None), ylim=(0, None))
    if x != 'hours':
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=.3)
    ax.legend()
