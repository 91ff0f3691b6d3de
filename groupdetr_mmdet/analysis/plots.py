"""What pictures share: their files, colors, and detections beside the ground truth."""
import io
from pathlib import Path
from typing import Iterator, Tuple, Union

import cv2
import matplotlib.pyplot as plt
import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.visualization import get_palette
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer

from ..io import check_output, write_atomically

# Okabe and Ito's colors, which color-blind people can tell apart, without their yellow
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
LINE_STYLES = ('-', '--', ':', '-.')  # one after the other when the colors have all been used
FONT_SIZE = 10
SUFFIXES = ('.png', '.svg', '.pdf', '.jpg')  # of pictures


def prepare_picture(out_file: str) -> None:
    """Check that ``--out`` can be a picture, and make its folder, before the work for it."""
    check_output('--out', out_file, 'a picture', SUFFIXES)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)


def save_picture(fig: Figure, out_file: Union[str, Path], dpi: float) -> None:
    """Write a picture, whole or not at all, and close its figure."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format=Path(out_file).suffix[1:], dpi=dpi)
    write_atomically(out_file, buffer.getvalue())
    plt.close(fig)


def line_style(index: int) -> dict:
    """Color and line style that tell the lines of a picture apart."""
    return dict(color=COLORS[index % len(COLORS)],
                linestyle=LINE_STYLES[index // len(COLORS) % len(LINE_STYLES)])


@torch.no_grad()
def detection_pairs(model: BaseModel, dataset: BaseDataset, num_images: int,
                    score_thr: float) -> Iterator[Tuple[str, np.ndarray, np.ndarray]]:
    """Draw the first images of a data set twice: with the ground truth, and with detections.

    The data set is in test mode, with annotations in its pipeline; detections of a lower score
    than ``score_thr`` are left out. Yields the image's name and the two drawings, RGB.
    """
    model.eval()
    for index in range(min(num_images, len(dataset))):
        sample = model.test_step(pseudo_collate([dataset[index]]))[0].cpu()
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        found = sample.pred_instances
        found = found[found.scores >= score_thr]
        yield (Path(sample.img_path).name,
               *(draw_instances(image, x, dataset.metainfo) for x in (sample.gt_instances, found)))


def enlarged(image: np.ndarray, size: int) -> Tuple[Visualizer, float]:
    """What draws on an RGB image whose longer side is now ``size`` pixels, and its scale."""
    factor = size / max(image.shape[:2])
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    return Visualizer(image=image), factor


def draw_instances(image: np.ndarray, instances: InstanceData, metainfo: dict,
                   size: int = 400) -> np.ndarray:
    """Draw boxes with their classes, and scores if they have any, on an enlarged RGB image.

    Args:
        image (ndarray): Shape (h, w, 3).
        instances (InstanceData): ``bboxes``, xyxy in pixels, ``labels`` and maybe ``scores``.
        metainfo (dict): ``classes`` and, if it is a list, ``palette`` of the data set.
        size (int): Pixels of the longer side of the drawing that is returned.
    """
    visualizer, factor = enlarged(image, size)
    if len(instances):
        bboxes = instances.bboxes * factor
        names = [metainfo['classes'][label] for label in instances.labels]
        if 'scores' in instances:
            names = [f'{name} {score:.2f}' for name, score in zip(names, instances.scores)]
        palette = metainfo.get('palette')
        if not isinstance(palette, (list, tuple)):
            palette = get_palette('random', len(metainfo['classes']))
        # CocoDataset's has 80 colors, whatever the classes
        colors = [palette[label % len(palette)] for label in instances.labels]
        visualizer.draw_bboxes(bboxes, edge_colors='k', line_widths=5, alpha=1)
        visualizer.draw_bboxes(bboxes, edge_colors=colors, line_widths=3, alpha=1)
        labels = [dict(facecolor=np.divide(color, 255), edgecolor='none', pad=1)
                  for color in colors]
        # The label of a box at the upper edge goes inside it.
        corners = bboxes[:, :2].clamp(min=bboxes.new_tensor([0, 2 * FONT_SIZE]))
        visualizer.draw_texts(names, corners, font_sizes=FONT_SIZE, colors='k', bboxes=labels,
                              vertical_alignments='bottom')
    return visualizer.get_image()
