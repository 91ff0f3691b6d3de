"""Write the tables and pictures of the documentation from what ``python -m benchmarks.evidence``
measured."""
import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from groupdetr_mmdet.analysis.plots import line_style, save_picture
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.io import write_atomically

from .evidence import RESULTS
from .report import markdown_lines

DOCS = Path(__file__).parents[1] / 'docs'
PAGE = 'choose-k.md'
HEADER = ('trained', 'epochs', 'CPU minutes', 'AP', 'AP50', 'seeds')


class Curve(NamedTuple):
    """The trainings that differ in their seeds alone."""
    label: str  # what they have in common
    epochs: np.ndarray  # when they were evaluated
    minutes: np.ndarray  # CPU minutes of training until then
    ap: np.ndarray  # shape (seeds, evaluations)
    ap50: np.ndarray  # as ap

    def row(self) -> Tuple:
        """What the curve ends with: mean, and least to most where there are several seeds."""
        return (self.label, f'{self.epochs[-1]:g}', f'{self.minutes[-1]:.1f}',
                *(f'{x.mean():.3f}' + f' ({x.min():.3f} to {x.max():.3f})' * (len(x) > 1)
                  for x in (self.ap[:, -1], self.ap50[:, -1])), len(self.ap))


def read_curves(path: Path) -> Dict[str, List[Curve]]:
    """Read the curves of each study, by rising K."""
    runs, studies = defaultdict(list), defaultdict(list)
    for name, run in json.loads(path.read_text()).items():
        study, label, _ = name.split('/')
        runs[study, run['num_groups'], label].append(run)
    for (study, k, label), seeds in sorted(runs.items()):
        if (study, k) == ('by-k', 6):  # whose time is the time of all in the other study
            studies['equal-time'].append(to_curve(label, seeds))
        studies[study].append(to_curve(label, seeds))
    studies['equal-time'].sort(key=lambda curve: int(curve.label.split()[-1]))
    return studies


def to_curve(label: str, seeds: List[Dict[str, Any]]) -> Curve:
    points = np.array([run['curve'] for run in seeds])  # (seeds, evaluations, 3)
    seconds = np.median([run['seconds_per_step'] * run['steps_per_epoch'] for run in seeds])
    epochs = points[0, :, 0]
    return Curve(label, epochs, epochs * seconds / 60, points[..., 1], points[..., 2])


def fill_page(text: str, studies: Dict[str, List[Curve]]) -> str:
    """Write the table of each study between the two comments that name it."""
    for study, curves in studies.items():
        begin, end = f'<!-- {study} -->\n\n', f'\n\n<!-- end of {study} -->'
        before, rest = text.split(begin)
        table = '\n'.join(markdown_lines(HEADER, (x.row() for x in curves)))
        text = before + begin + table + rest[rest.index(end):]
    return text


# picture -> panels: title, study, what is on the x axis
PICTURES: Dict[str, List[Tuple[str, str, str]]] = {
    'evidence_shapes.png': [
        ('Equal epochs', 'by-k', 'epochs'), ('Equal epochs, by time', 'by-k', 'minutes'),
        ('Schedules of equal time', 'equal-time', 'minutes')],
    'evidence_fine_tuning.png': [
        ('Fine-tuning, by epoch', 'fine-tuning', 'epochs'),
        ('Fine-tuning, by time', 'fine-tuning', 'minutes')],
}


def draw(panels: List[Tuple[str, str, str]], studies: Dict[str, List[Curve]],
         out_file: Path) -> None:
    """Draw the mean AP of each curve of a K, and from the least to the most of its seeds."""
    fig, axes = plt.subplots(1, len(panels), sharey=True, figsize=(4.4 * len(panels), 4),
                             layout='constrained')
    styles: Dict[str, dict] = {}
    for ax, (title, study, x) in zip(axes, panels):
        for curve in studies[study]:
            if curve.label.startswith('K = '):
                style = styles.setdefault(curve.label, line_style(len(styles)))
                ax.plot(getattr(curve, x), curve.ap.mean(0), label=curve.label, marker='o',
                        markersize=3, **style)
                ax.fill_between(getattr(curve, x), curve.ap.min(0), curve.ap.max(0), alpha=.15,
                                color=style['color'])
        ax.set(title=title, xlim=(0, None),
               xlabel='epochs' if x == 'epochs' else 'CPU minutes of training')
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=.3)
    axes[0].set(ylabel='AP (IoU 0.50:0.95)', ylim=(0, None))
    axes[0].legend()
    save_picture(fig, out_file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog='benchmarks.evidence_report', description=__doc__)
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--docs', type=Path, default=DOCS, help='folder of the documentation')
    args = parser.parse_args()
    studies, page = read_curves(args.results), args.docs / PAGE
    write_atomically(page, fill_page(page.read_text(), studies).encode())
    for name, panels in PICTURES.items():
        draw(panels, studies, args.docs / 'images' / name)
    print(f'Wrote the tables of {page} and {", ".join(PICTURES)}')


if __name__ == '__main__':
    end_in_one_line(main)
