"""Draw AP with and without groups from the recorded runs of ``benchmarks/evidence.json``."""
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from groupdetr_mmdet.analysis.plots import COLORS

RESULTS = Path(__file__).parents[1] / 'benchmarks/evidence.json'
STUDY = 'from-scratch/shapes'
NAMES = {'K = 1': 'without groups (K = 1)', 'K = 3': 'with groups (K = 3)'}
STYLES = {'K = 1': (COLORS[1], '--'), 'K = 3': (COLORS[0], '-')}


def main(out: str) -> None:
    runs = json.loads(RESULTS.read_text())
    fig, axes = plt.subplots(1, 2, sharey=True, figsize=(8.4, 3.4), layout='constrained')
    for label, (color, line) in STYLES.items():
        seeds = [run for name, run in runs.items() if name.startswith(f'{STUDY}/{label}/')]
        points = np.array([run['curve'] for run in seeds])  # (seeds, evaluations, 3)
        epochs, ap = points[0, :, 0], points[..., 1]
        seconds = np.median([run['seconds_per_step'] * run['steps_per_epoch'] for run in seeds])
        for ax, x in zip(axes, (epochs, epochs * seconds / 60)):
            ax.plot(x, ap.T, color=color, alpha=.35, linewidth=.9)
            ax.plot(x, ap.mean(0), line, color=color, linewidth=2.4, label=NAMES[label])
            ax.annotate(f'{ap[:, -1].mean():.2f}', (x[-1], ap[:, -1].mean()), xytext=(5, -3),
                        textcoords='offset points', color=color, fontweight='bold')
    for ax, x in zip(axes, ('epoch', 'CPU minutes of training')):
        ax.set(xlabel=x, xlim=(0, ax.dataLim.x1 * 1.14), ylim=(0, .65))
        ax.grid(alpha=.3)
    axes[0].set_ylabel('AP')
    axes[0].legend(loc='upper left')
    fig.savefig(out, dpi=130)


if __name__ == '__main__':
    main(sys.argv[1] if len(sys.argv) > 1 else 'docs/images/groups.png')
