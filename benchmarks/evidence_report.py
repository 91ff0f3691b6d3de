"""Write tables and pictures of the documentation from the results of ``benchmarks.evidence``."""
import argparse
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from groupdetr_mmdet.analysis.plots import COLORS, line_style, save_picture
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.io import write_atomically

from .evidence import RESULTS, STUDIES, Results, read_results
from .report import markdown_lines

DOCS = Path(__file__).parents[1] / 'docs'
PAGES = 'choose-k.md', 'losses.md', 'experiments.md'


class Table(NamedTuple):
    """Rows of a study, and the baseline row."""
    study: str
    baseline: str
    rows: Tuple[str, ...] = ()  # all by default


class Row(NamedTuple):
    """Trainings that differ in data set and seed alone."""
    label: str
    epochs: int  # on most data sets
    minutes: float  # CPU minutes of training, mean
    ap: Dict[Tuple[str, int], float]  # by data set and seed, after the last epoch

    def gains(self, baseline: 'Row') -> np.ndarray:
        """Return the differences to another row, by data set and seed."""
        return np.array([self.ap[x] - baseline.ap[x] for x in sorted(self.ap) if x in baseline.ap])


FINE_TUNING, SCRATCH = (tuple(STUDIES[x]) for x in ('fine-tuning', 'from-scratch'))
SAME = 'K = 1, epochs of K = 3'
NOISES = tuple(x for x in FINE_TUNING if x == 'K = 1' or 'noise' in x or 'drawn' in x)
LONG = 'K = 1, three times as long', 'K = 3, three times as long'
THREE, SIX = 'K = 3, noise 0.5', 'K = 6, noise 0.5'
DROPOUT = 'K = 3, attention dropout', 'K = 3, query dropout'
# Rows that change the loss, the augmentation or the weights that are evaluated
BEYOND = tuple(x for x in FINE_TUNING if x not in (*NOISES, *DROPOUT, *LONG, SAME))
# Name in the comments around a table in the pages -> the table
TABLES = {
    'from-scratch': Table('from-scratch', 'K = 1', tuple(x for x in SCRATCH if ',' not in x)),
    'from-scratch-losses': Table('from-scratch', 'K = 3', tuple(
        x for x in SCRATCH if x.startswith('K = 3'))),
    'groups': Table('fine-tuning', 'K = 1', NOISES),
    'equal-epochs': Table('fine-tuning', SAME, (
        SAME, *(x for x in NOISES if x.startswith('K = 3')))),
    'longer': Table('fine-tuning', LONG[0], LONG),
    'losses': Table('fine-tuning', 'K = 1', (
        'K = 1', *(x for x in BEYOND if x.startswith('K = 1')))),
    'losses-of-three': Table('fine-tuning', THREE, (
        THREE, *(x for x in BEYOND if x.startswith('K = 3')))),
    'losses-of-six': Table('fine-tuning', SIX, (
        SIX, *(x for x in BEYOND if x.startswith('K = 6')))),
    'dropout': Table('fine-tuning', THREE, (THREE, *DROPOUT)),
    'from-groups': Table('from-groups', 'K = 1'),
    'backbone': Table('backbone', 'K = 1'),
    'imagenet': Table('imagenet', 'K = 1', tuple(
        x for x in STUDIES['imagenet'] if x not in LONG)),
    'imagenet-longer': Table('imagenet', LONG[0], LONG),
    'dino': Table('dino', 'K = 1'),
    'lr': Table('lr', 'lr x 1'),
}


def read_rows(results: Results, table: Table) -> List[Row]:
    """Read the measured rows of a table, in the order of the study."""
    runs: Dict[str, Dict[Tuple[str, int], dict]] = defaultdict(dict)
    for name, run in results.items():
        study, data, label, seed = name.split('/')
        if study == table.study:
            runs[label][data, int(seed)] = run
    return [Row(label, min(x['epochs'] for x in found.values()),
                float(np.mean([x['epochs'] * x['steps_per_epoch'] * x['seconds_per_step'] / 60
                               for x in found.values()])),
                {key: x['curve'][-1][1] for key, x in found.items()})
            for label in table.rows or STUDIES[table.study] if (found := runs.get(label))]


def interval(values: np.ndarray) -> float:
    """Return half the width of the 95 % t-interval of a mean, NaN for a single value."""
    if len(values) < 2:
        return np.nan
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def table_lines(rows: List[Row], table: Table) -> str:
    """Write a table: AP of each data set, mean and standard deviation, and the difference."""
    baseline = next(row for row in rows if row.label == table.baseline)
    sets = list(dict.fromkeys(data for row in rows for data, _ in row.ap))
    return '\n'.join(markdown_lines(
        ('trained', 'epochs', 'CPU minutes', *sets, f'difference to {table.baseline}', 'runs'),
        ((row.label, row.epochs, f'{row.minutes:.2f}', *(spread(row, data) for data in sets),
          difference(row.gains(baseline)) if row is not baseline else '', len(row.ap))
         for row in rows)))


def spread(row: Row, data: str) -> str:
    values = [ap for (name, _), ap in row.ap.items() if name == data]
    if not values:
        return ''
    text = f'{np.mean(values):.3f}'
    return text if len(values) == 1 else f'{text} ± {np.std(values, ddof=1):.3f}'


def difference(gains: np.ndarray) -> str:
    half = interval(gains)
    if np.isnan(half):
        return ''
    return f'{gains.mean():+.3f} ± {half:.3f}'


def fill_page(text: str, results: Results) -> str:
    """Replace the tables between their comments in a page."""
    for name, table in TABLES.items():
        begin, end = f'<!-- {name} -->\n\n', f'\n\n<!-- end of {name} -->'
        if begin in text and (rows := read_rows(results, table)):
            before, rest = text.split(begin)
            text = before + begin + table_lines(rows, table) + rest[rest.index(end):]
    return text


def read_gains(results: Results, table: Table) -> Dict[str, np.ndarray]:
    """Return the differences to the baseline of each row that has at least three."""
    rows = {row.label: row for row in read_rows(results, table)}
    first = rows.pop(table.baseline, None)
    gains = {label: row.gains(first) for label, row in rows.items()} if first else {}
    return {label: x for label, x in gains.items() if len(x) > 2}


def draw_gains(results: Results, names: Sequence[str], out_file: Path) -> None:
    """Draw the differences to the baseline of each table, with their intervals."""
    tables = {name: gains for name in names if (gains := read_gains(results, TABLES[name]))}
    fig, axes = plt.subplots(
        len(tables), 1, figsize=(7.5, 1.2 + 0.6 * len(tables) + 0.3 * sum(
            map(len, tables.values()))), sharex=True, layout='constrained',
        height_ratios=[len(x) for x in tables.values()])
    for ax, (name, rows) in zip(np.atleast_1d(axes), tables.items()):
        for y, gains in enumerate(reversed(rows.values())):
            ax.plot(gains, [y] * len(gains), '.', color='gray', alpha=.5)
            ax.errorbar(gains.mean(), y, xerr=interval(gains), fmt='o', capsize=3,
                        color=COLORS[0])
        ax.set_yticks(range(len(rows)), reversed(rows))
        ax.set(ylim=(-.6, len(rows) - .4),
               title=f'{name}: difference to {TABLES[name].baseline}')
        ax.axvline(0, color='black', linewidth=.8)
        ax.grid(alpha=.3)
    np.atleast_1d(axes)[-1].set_xlabel('AP (IoU 0.50:0.95); bars are 95 % intervals')
    save_picture(fig, out_file, dpi=110)


def draw_curves(results: Results, table: Table, out_file: Path) -> None:
    """Draw the mean AP by CPU minutes of each row, and the range of its seeds."""
    fig, ax = plt.subplots(figsize=(6, 4), layout='constrained')
    for i, label in enumerate(table.rows):
        runs = [run for name, run in results.items()
                if name.startswith(f'{table.study}/') and name.split('/')[2] == label]
        points = np.array([run['curve'] for run in runs])  # (seeds, validations, 3)
        minutes = points[0, :, 0] / 60 * np.median(
            [run['seconds_per_step'] * run['steps_per_epoch'] for run in runs])
        style = line_style(i)
        ax.plot(minutes, points[..., 1].mean(0), label=label, marker='o', markersize=3, **style)
        ax.fill_between(minutes, points[..., 1].min(0), points[..., 1].max(0), alpha=.15,
                        color=style['color'])
    ax.set(xlabel='CPU minutes of training', ylabel='AP (IoU 0.50:0.95)', xlim=(0, None),
           ylim=(0, None))
    ax.grid(alpha=.3)
    ax.legend()
    save_picture(fig, out_file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog='benchmarks.evidence_report', description=__doc__)
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--docs', type=Path, default=DOCS, help='folder of the documentation')
    args = parser.parse_args()
    results, images = read_results(args.results), args.docs / 'images'
    for page in (args.docs / name for name in PAGES):
        write_atomically(page, fill_page(page.read_text(), results).encode())
    draw_curves(results, TABLES['from-scratch'], images / 'evidence_shapes.png')
    draw_gains(results, ('groups', 'longer', 'equal-epochs', 'from-groups', 'dino',
                         'imagenet', 'lr'),
               images / 'evidence_gains.png')
    print(f'Wrote the tables of {", ".join(PAGES)}, and the pictures in {images}')


if __name__ == '__main__':
    end_in_one_line(main)
