"""Draw the queries of every group (the paper's Figure 3)."""
from pathlib import Path
from typing import List, Sequence, Tuple, Union

import matplotlib.pyplot as plt
import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer

from ..group_detector import ALL_GROUPS, GroupDetector
from .plots import enlarged, line_style, save_picture
from .queries import (decode_queries, detections, ground_truth, has_references,
                      joint_self_attention, match_queries)

SIZE = 480  # pixels of the longer side of each image in a picture


def draw_queries(model: GroupDetector, dataset: BaseDataset, out_file: Union[str, Path],
                 images: Sequence[int] = (0, 1), score_thr: float = 0.3,
                 max_objects: int = 4) -> None:
    """Draw the queries of every group, a row of :func:`query_pictures` for each image.

    The data set must be in test mode, with annotations in its pipeline; ``images`` are its
    indices.
    """
    rows = [query_pictures(model, dataset, index, score_thr, max_objects) for index in images]
    aspect = max(picture.shape[0] / picture.shape[1] for row in rows for _, picture in row)
    fig, grid = plt.subplots(len(rows), 3, squeeze=False, layout='constrained',
                             figsize=(12, 1 + 4 * len(rows) * aspect))
    for axes, row in zip(grid, rows):
        for ax, (title, picture) in zip(axes, row):
            ax.imshow(picture)
            ax.set_title(title, fontsize=11)
            ax.axis('off')
    fig.get_layout_engine().set(h_pad=.1)
    add_legend(fig, model)
    save_picture(fig, out_file, dpi=90)


def query_pictures(model: GroupDetector, dataset: BaseDataset, index: int, score_thr: float,
                   max_objects: int) -> List[Tuple[str, np.ndarray]]:
    """Draw an image of a data set three times; return titles and RGB pictures.

    1. The K queries matched with each of the ``max_objects`` largest objects: boxes, in a color
       for each group, and reference points if the queries have them.
    2. The detections of the kept group.
    3. The detections of all groups with joint self-attention.

    Detections below ``score_thr`` are left out.
    """
    data = pseudo_collate([dataset[index]])
    decoded = decode_queries(model.eval(), data)
    with joint_self_attention(model):
        together = detections(model, decode_queries(model, data), 0, score_thr)
    kept, kept_name = model.test_cfg['query_group'], 'all groups'
    alone = detections(model, decoded, 0, score_thr)
    if kept != ALL_GROUPS:
        alone, kept_name = alone[alone.query_groups == kept], f'group {kept} alone'
    boxes = ground_truth(decoded.samples[0]).bboxes
    largest = (boxes[:, 2:] - boxes[:, :2]).prod(1).argsort(descending=True)[:max_objects]
    queries = match_queries(model, decoded)[0][:, largest]  # (K, objects)
    groups = torch.arange(len(queries), device=queries.device)[:, None]
    rows = (groups * model.group_size + queries)[queries >= 0]
    matched = detections(model, decoded, 0, score_thr=0)[rows.cpu()]
    image = mmcv.imread(decoded.samples[0].img_path, channel_order='rgb')
    return [(f'queries matched with {len(largest)} objects', draw(image, matched, lines=True)),
            (f'{kept_name}: {len(alone)} detections of {len(boxes)} objects', draw(image, alone)),
            (f'all groups, joint self-attention: {len(together)} detections',
             draw(image, together))]


def add_legend(fig: Figure, model: GroupDetector) -> None:
    """Add the color of each group below a figure."""
    handles = [Line2D([], [], label=f'group {group}', linewidth=2, **line_style(group))
               for group in range(model.num_query_groups)]
    if has_references(model):
        handles.append(
            Line2D([], [], label='reference point', linestyle='', marker='o', color='gray'))
    fig.legend(handles=handles, loc='outside lower center', ncols=min(len(handles), 8))


def draw(image: np.ndarray, instances: InstanceData, lines: bool = False) -> np.ndarray:
    """Draw the result of :func:`detections` on an RGB image, in the groups' colors.

    ``lines`` join each reference point with the center of its box.
    """
    image, factor = enlarged(image, SIZE)
    if not len(instances):
        return image
    visualizer = Visualizer(image=image)
    styles = [line_style(group) for group in instances.query_groups.tolist()]
    colors = [style['color'] for style in styles]
    if 'masks' in instances:
        masks = F.interpolate(instances.masks[None].float(), image.shape[:2], mode='nearest')[0]
        visualizer.draw_binary_masks(masks.bool(), colors=colors, alphas=.3)
    corner = torch.tensor([visualizer.width - 1, visualizer.height - 1] * 2)  # xyxy, in pixels
    boxes = (instances.bboxes * factor).clamp(min=0).minimum(corner)
    visualizer.draw_bboxes(boxes, edge_colors=colors, line_widths=2, alpha=1,
                           line_styles=[style['linestyle'] for style in styles])
    if 'references' in instances:
        points = (instances.references * factor).clamp(min=0).minimum(corner[:2])
        if lines:
            ends = torch.stack([points, (boxes[:, :2] + boxes[:, 2:]) / 2], 2)  # (n, xy, 2 ends)
            visualizer.draw_lines(ends[:, 0], ends[:, 1], colors=colors, line_widths=1)
        visualizer.draw_points(points, colors=colors, marker='o', sizes=np.full(len(points), 30))
    return visualizer.get_image()
