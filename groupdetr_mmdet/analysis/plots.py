"""Pictures of a run: its curves, and its detections beside the ground truth."""
import json
from pathlib import Path
from typing import List, Sequence, Union

import cv2
import matplotlib.pyplot as plt
import mmcv
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer

from ..errors import ConfigError
from ..host.preflight import check_output

LOSSES = dict(
    loss='sum over all decoder layers',
    loss_cls='classification, last layer',
    loss_bbox='L1 of boxes, last layer',
    loss_iou='GIoU of boxes, last layer')
METRICS = {'coco/bbox_mAP': 'AP', 'coco/bbox_mAP_50': 'AP50', 'coco/bbox_mAP_75': 'AP75'}
# Okabe and Ito's colors, which color-blind people can tell apart, without their yellow
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
LINE_STYLES = ('-', '--', ':', '-.')  # one after the other when the colors have all been used
FONT_SIZE = 10
SUFFIXES = ('.png', '.svg', '.pdf', '.jpg')  # of pictures


def prepare_picture(out_file: str) -> None:
    """Make the folder of ``--out``, a picture, before the work that it will show.

    Raises:
        ConfigError: If it is not the name of a picture, or cannot be written there.
    """
    if Path(out_file).suffix.lower() not in SUFFIXES:
        raise ConfigError(f'--out: {out_file} is not the name of a picture; let it end in '
                          f'{", ".join(SUFFIXES)}.')
    check_output('--out', out_file)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)


def line_style(index: int) -> dict:
    """Color and line style that tell the lines of a picture apart."""
    return dict(color=COLORS[index % len(COLORS)],
                linestyle=LINE_STYLES[index // len(COLORS) % len(LINE_STYLES)])


def read_scalars(log_dir: Union[str, Path]) -> List[dict]:
    """Read what mmengine's local visualization backend wrote in a run.

    Args:
        log_dir (str or Path): The run's own folder, ``runner.log_dir``.

    Returns:
        list[dict]: One entry for each line of the log: of training with ``loss``, ``epoch`` and
        ``step`` (iterations done), of validation with ``coco/...`` and ``step`` (epochs done).
    """
    lines = Path(log_dir, 'vis_data', 'scalars.json').read_text().splitlines()
    return [json.loads(line) for line in lines]


def draw_curves(scalars: Sequence[dict], out_file: Union[str, Path]) -> None:
    """Draw losses and COCO metrics by epoch.

    Args:
        scalars (Sequence[dict]): What :func:`read_scalars` returns.
        out_file (str or Path): Picture to write.
    """
    train = [entry for entry in scalars if 'loss' in entry]
    val = [entry for entry in scalars if 'coco/bbox_mAP' in entry]
    epoch_length = train[-1]['step'] / train[-1]['epoch']
    fig, (losses, metrics) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for (key, label), color in zip(LOSSES.items(), COLORS):
        losses.plot([entry['step'] / epoch_length for entry in train],
                    [entry[key] for entry in train], color=color, label=label)
    for (key, label), color in zip(METRICS.items(), COLORS):
        metrics.plot([entry['step'] for entry in val], [entry[key] for entry in val],
                     color=color, marker='o', markersize=3, label=label)
    losses.set(title='Training', ylabel='weighted loss', ylim=(0, None))
    metrics.set(title='Validation', ylabel='average precision', ylim=(0, 1))
    for axes in (losses, metrics):
        axes.set(xlabel='epoch', xlim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    fig.savefig(out_file, dpi=150)
    plt.close(fig)


@torch.no_grad()
def draw_detections(model: BaseModel, dataset: BaseDataset, out_file: Union[str, Path],
                    num_images: int = 8, score_thr: float = 0.3) -> None:
    """Draw the first images of a data set twice: with ground truth, and with detections.

    Args:
        model (BaseModel): Detector.
        dataset (BaseDataset): Data set in test mode, with annotations in its pipeline.
        out_file (str or Path): Picture to write.
        num_images (int): Number of images. Defaults to 8.
        score_thr (float): Detections of a lower score are left out. Defaults to 0.3.
    """
    model.eval()
    num_images = min(num_images, len(dataset))
    rows = -(-num_images // 2)
    fig, grid = plt.subplots(rows, 4, figsize=(12, 3.1 * rows), layout='constrained',
                             squeeze=False)
    for ax in grid.flat:
        ax.axis('off')
    titles = ('ground truth', f'detections, score of {score_thr} or more')
    for i, axes in enumerate(grid.reshape(-1, 2)[:num_images]):
        sample = model.test_step(pseudo_collate([dataset[i]]))[0].cpu()
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        detections = sample.pred_instances
        detections = detections[detections.scores >= score_thr]
        for ax, instances in zip(axes, (sample.gt_instances, detections)):
            ax.imshow(draw_instances(image, instances, dataset.metainfo))
    for ax, title in zip(grid[0], titles * 2):
        ax.set_title(title)
    fig.savefig(out_file, dpi=120)
    plt.close(fig)


def draw_instances(image: np.ndarray, instances: InstanceData, metainfo: dict,
                   size: int = 400) -> np.ndarray:
    """Draw boxes with their classes, and scores if they have any, on an enlarged image.

    Args:
        image (np.ndarray): RGB, shape (h, w, 3).
        instances (InstanceData): ``bboxes``, xyxy in pixels of the image, ``labels`` and, of
            detections, ``scores``.
        metainfo (dict): ``classes`` and ``palette`` of the data set.
        size (int): Length in pixels of the drawing's longer side. Defaults to 400.

    Returns:
        np.ndarray: RGB, the drawing.
    """
    factor = size / max(image.shape[:2])
    visualizer = Visualizer(
        image=cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC))
    if len(instances):
        bboxes = instances.bboxes * factor
        names = [metainfo['classes'][label] for label in instances.labels]
        if 'scores' in instances:
            names = [f'{name} {score:.2f}' for name, score in zip(names, instances.scores)]
        palette = metainfo['palette']  # CocoDataset's has 80 colors, whatever the classes
        colors = [palette[label % len(palette)] for label in instances.labels]
        visualizer.draw_bboxes(bboxes, edge_colors='k', line_widths=5, alpha=1)
        visualizer.draw_bboxes(bboxes, edge_colors=colors, line_widths=3, alpha=1)
        labels = [dict(facecolor=np.array(color) / 255, edgecolor='none', pad=1)
                  for color in colors]
        # The label of a box at the upper edge goes inside it.
        corners = bboxes[:, :2].clamp(min=bboxes.new_tensor([0, 2 * FONT_SIZE]))
        visualizer.draw_texts(names, corners, font_sizes=FONT_SIZE, colors='k', bboxes=labels,
                              vertical_alignments='bottom')
    return visualizer.get_image()
