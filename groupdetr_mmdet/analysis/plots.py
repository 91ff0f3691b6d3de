"""Shared by pictures: files, colors, detections beside the ground truth."""
import io
from pathlib import Path
from typing import Iterator, Tuple, Union

import cv2
import matplotlib.pyplot as plt
import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.model import BaseModel

from ..io import check_output, write_atomically

# Okabe and Ito's colors for color-blind readers, without yellow
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
LINE_STYLES = ('-', '--', ':', '-.')  # the next style after each round of colors
SUFFIXES = ('.png', '.svg', '.pdf', '.jpg')  # of pictures


def prepare_picture(out_file: str) -> None:
    """Check ``--out`` and make its folder, before the picture is computed."""
    check_output('--out', out_file, 'a picture', SUFFIXES)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)


def save_picture(fig: Figure, out_file: Union[str, Path], dpi: float) -> None:
    """Write a figure to a file, whole or not at all, and close it."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format=Path(out_file).suffix[1:], dpi=dpi)
    write_atomically(out_file, buffer.getvalue())
    plt.close(fig)


def line_style(index: int) -> dict:
    """Return color and style of a picture's line ``index``."""
    return dict(color=COLORS[index % len(COLORS)],
                linestyle=LINE_STYLES[index // len(COLORS) % len(LINE_STYLES)])


def enlarged(image: np.ndarray, size: int) -> Tuple[np.ndarray, float]:
    """Resize an image to a longer side of ``size`` pixels; return image and scale."""
    factor = size / max(image.shape[:2])
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), factor


@torch.no_grad()
def detection_pairs(model: BaseModel, dataset: BaseDataset, num_images: int, score_thr: float,
                    size: int = 320) -> Iterator[Tuple[str, np.ndarray]]:
    """Draw ground truth and detections side by side, for the first images of a data set.

    The data set must be in test mode, with annotations in its pipeline. Yields the name of each
    image and an RGB drawing, whose halves have a longer side of ``size`` pixels.
    """
    model.eval()
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=dataset.metainfo['classes'], palette='random')
    for index in range(min(num_images, len(dataset))):
        sample = model.test_step(pseudo_collate([dataset[index]]))[0].cpu()
        image, factor = enlarged(mmcv.imread(sample.img_path, channel_order='rgb'), size)
        for instances in (sample.gt_instances, sample.pred_instances):
            instances.bboxes = instances.bboxes * factor
            instances.pop('masks', None)  # not resized
        visualizer.add_datasample('', image, sample, pred_score_thr=score_thr)
        yield Path(sample.img_path).name, visualizer.get_image()
