"""Draw AP with and without groups from the recorded runs of ``benchmarks/evidence.json``."""
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from groupdetr_mmdet.analysis.plots import COLORS

RESULTS = Path(__file__).parents[1] / 'benchmarks/evidence.json'
PANELS = {  # title -> label -> study of the results
    'Equal epochs': {'K = 1': 'by-k', 'K = 3': 'by-k'},
    'Equal CPU time': {'K = 1': 'equal-time', 'K = 3': 'equal-time'}}
NAMES = {'K = 1': 'K = 1: without groups', 'K = 3': 'K = 3 groups'}
STYLES = {'K = 1': (COLORS[1], '--'), 'K = 3': (COLORS[0], '-')}


def main(out: str) -> None:
    runs = json.loads(RESULTS.read_text())
    fig, axes = plt.subplots(1, 2, sharey=True, figsize=(8.4, 3.4), layout='constrained')
    for ax, (title, curves) in zip(axes, PANELS.items()):
        for label, study in curves.items():
            color, line = STYLES[label]
            seeds = [run for name, run in runs.items() if name.startswith(f'{study}/{label}/')]
            points = np.array([run['curve'] for run in seeds])  # (seeds, evaluations, 3)
            x = points[0, :, 0]
            if 'time' in title:
                x = x * np.median([s['seconds_per_step'] * s['steps_per_epoch']
                                   for s in seeds]) / 60
            mean = points[..., 1].mean(0)
            ax.plot(x, points[..., 1].T, color=color, alpha=.35, linewidth=.9)
            ax.plot(x, mean, line, color=color, linewidth=2.4, label=NAMES[label])
            ax.annotate(f'{mean[-1]:.2f}', (x[-1], mean[-1]), xytext=(5, -3), color=color,
                        textcoords='offset points', fontweight='bold')
        ax.set(title=title, xlabel='CPU minutes of training' if 'time' in title else 'epoch',
               xlim=(0, x[-1] * 1.14), ylim=(0, .65))
        ax.grid(alpha=.3)
    axes[0].set_ylabel('AP')
    axes[0].legend(loc='upper left')
    fig.savefig(out, dpi=130)


if __name__ == '__main__':
    main(sys.argv[1] if len(sys.argv) > 1 else 'docs/images/groups.png')
