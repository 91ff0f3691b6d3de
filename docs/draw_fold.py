"""Draw the fold of the groups into the batch, from what `fold_groups` does to numbered rows."""
import sys

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from groupdetr_mmdet.analysis.plots import COLORS
from groupdetr_mmdet.groups import fold_groups, unfold_groups

BATCH_SIZE, K, N = 2, 3, 4


def draw_rows(ax: Axes, rows: torch.Tensor, names: list, title: str) -> None:
    """Draw a batch of rows, each as a cell of its group's color with its number.

    Args:
        ax (Axes): Where to draw.
        rows (Tensor): Numbers of the rows over all images, shape (batch, rows of an entry).
        names (list[str]): What to call each entry of the batch.
        title (str): Title of the picture.
    """
    for y, entry in enumerate(rows.tolist()):
        for x, row in enumerate(entry):
            image, row = divmod(row, K * N)
            group, query = divmod(row, N)
            ax.add_patch(Rectangle((x, y), .92, .8, color=COLORS[group], alpha=.9 - .45 * image))
            ax.text(x + .46, y + .4, query, ha='center', va='center', fontsize=10)
        ax.text(-.25, y + .4, names[y], ha='right', va='center', fontsize=9)
    ax.set(title=title, xlim=(-2.6, max(12, rows.size(1))), ylim=(len(rows), -.2))
    ax.set_aspect('equal')
    ax.axis('off')


def main(out_file: str) -> None:
    rows = torch.arange(BATCH_SIZE * K * N).view(BATCH_SIZE, K * N, 1)
    folded = fold_groups(rows, N)
    assert torch.equal(unfold_groups(folded, BATCH_SIZE), rows)
    images = [f'image {b}' for b in range(BATCH_SIZE)]
    groups = [f'{image}, group {g}' for image in images for g in range(K)]
    fig, (before, after) = plt.subplots(
        2, 1, figsize=(8, 6), layout='constrained', height_ratios=[BATCH_SIZE, BATCH_SIZE * K])
    draw_rows(before, rows[..., 0], images,
              f'The decoder: {BATCH_SIZE} images, K = {K} groups of N = {N} queries each')
    draw_rows(after, folded[..., 0], groups,
              f'Self-attention: a batch of {BATCH_SIZE * K} with {N} queries each')
    fig.savefig(out_file, dpi=110, bbox_inches='tight')


if __name__ == '__main__':
    main(sys.argv[1])
