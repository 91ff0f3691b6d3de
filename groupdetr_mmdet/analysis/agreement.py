"""How far the groups agree on an object, and whether that tells right from wrong.

A trained detector has K groups that all learned to find every object, with one decoder. They are
an ensemble at the price of one decoder pass.
"""
import contextlib
import io
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment
from scipy.stats import mannwhitneyu

from .plots import COLORS

IOU_THR = 0.5


def add_agreement(instances: InstanceData, group_instances: InstanceData,
                  num_groups: int) -> None:
    """Say of each detection of the kept group what the groups think of it.

    A group found an object if it has a detection of the same label with an IoU of at least 0.5;
    each of its detections counts for one object.

    Args:
        instances (InstanceData): Detections of the kept group, changed in place. They get
            ``group_scores``, the score in each group, NaN where it did not find the object, shape
            (n, K); ``found_by``, the number of groups that did, the kept one included, shape
            (n, ); ``score_std`` and ``box_std``, the standard deviation over these of the score,
            shape (n, ), and of the box, xyxy in pixels, shape (n, 4).
        group_instances (InstanceData): Those of all K groups, whose ``query_groups`` tell which.
        num_groups (int): Groups of the detector, K.
    """
    scores = np.full((len(instances), num_groups), np.nan)
    boxes = np.full((len(instances), num_groups, 4), np.nan)
    for group in range(num_groups):
        others = group_instances[group_instances.query_groups == group]
        rows, columns = pair_detections(instances, others)
        scores[rows, group] = others.scores.cpu().numpy()[columns]
        boxes[rows, group] = others.bboxes.cpu().numpy()[columns]
    instances.group_scores = torch.from_numpy(scores)
    instances.found_by = instances.group_scores.isfinite().sum(1)
    instances.score_std = torch.from_numpy(np.nanstd(scores, 1))
    instances.box_std = torch.from_numpy(np.nanstd(boxes, 1))


def pair_detections(first: InstanceData, second: InstanceData) -> Tuple[np.ndarray, np.ndarray]:
    """Rows of both whose detections of one label pair one-to-one, by the largest sum of IoU."""
    overlaps = bbox_overlaps(first.bboxes, second.bboxes)
    overlaps[(overlaps < IOU_THR) | (first.labels[:, None] != second.labels)] = 0
    overlaps = overlaps.cpu().numpy()
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    found = overlaps[rows, columns] > 0
    return rows[found], columns[found]


# Does agreement predict correctness?

Result = Dict[str, Any]  # an entry of results.json


class Agreement(NamedTuple):
    """What was measured of one certainty."""
    name: str
    auroc: float  # probability that a right detection has more of it than a wrong one
    gain: Tuple[float, float]  # AUROC minus the score's, 95 % of resampled sets of images
    calibration_error: float  # mean distance of certainty and share of right ones
    curve: np.ndarray  # of each tenth of the detections, (mean certainty, share of right ones)


def certainties(result: Result) -> Dict[str, float]:
    """How sure one may be of a detection, from 0 to 1, by the name of what says so."""
    scores, (_, _, width, height) = result['group_scores'], result['bbox']
    box_spread = np.mean(result['box_std']) / max(1e-6, (width * height)**.5)
    return {
        'score': result['score'],
        'groups that found it': result['found_by'] / len(scores),
        'mean score of the groups': sum(score or 0 for score in scores) / len(scores),
        'steadiness of the box': 1 - min(1., box_spread),
    }


def is_correct(results: Sequence[Result], coco: COCO) -> Tuple[np.ndarray, np.ndarray]:
    """Whether each detection is right, as COCO's evaluation says at an IoU of 0.5, and counts.

    What lies on a crowd does not count.
    """
    correct, counts = np.zeros((2, len(results)), bool)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(coco, coco.loadRes([dict(result) for result in results]), 'bbox')
        evaluation.params.iouThrs = np.array([IOU_THR])
        evaluation.params.maxDets = [len(results)]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ['all']
        evaluation.evaluate()
    for image in filter(None, evaluation.evalImgs):
        rows = np.array(image['dtIds'], int) - 1
        correct[rows], counts[rows] = image['dtMatches'][0] > 0, ~image['dtIgnore'][0].astype(bool)
    return correct, counts


def auroc(certainty: np.ndarray, correct: np.ndarray) -> float:
    """Area under the ROC curve, NaN where all detections are right, or all wrong."""
    right, wrong = certainty[correct], certainty[~correct]
    if not len(right) or not len(wrong):
        return float('nan')
    return mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong))


def measure_agreement(results: Sequence[Result], coco: COCO, num_samples: int = 300,
                      seed: int = 0) -> List[Agreement]:
    """Measure how well each of ``certainties`` tells right detections from wrong ones.

    Args:
        results (Sequence[dict]): ``results.json`` of ``predict --all-groups``.
        coco (COCO): The ground truth.
        num_samples, seed (int): Sets of images, drawn with replacement, to bound the gain.
    """
    correct, counts = is_correct(results, coco)
    certain = [certainties(result) for result, counted in zip(results, counts) if counted]
    values = {name: np.array([x[name] for x in certain]) for name in certain[0]}
    images = np.array([result['image_id'] for result in results])[counts]
    correct = correct[counts]
    by_image = [np.flatnonzero(images == image) for image in np.unique(images)]
    draws = np.random.default_rng(seed).integers(len(by_image), size=(num_samples, len(by_image)))
    samples = [np.concatenate([by_image[i] for i in draw]) for draw in draws]
    aurocs = {name: np.array([auroc(value[rows], correct[rows]) for rows in samples])
              for name, value in values.items()}
    measured = []
    for name, value in values.items():
        tenths = np.array_split(np.argsort(value, kind='stable'), 10)
        curve = np.array([(value[rows].mean(), correct[rows].mean())
                          for rows in tenths if len(rows)])
        measured.append(Agreement(
            name, auroc(value, correct),
            tuple(np.nanpercentile(aurocs[name] - aurocs['score'], (2.5, 97.5))),
            float(np.abs(curve[:, 0] - curve[:, 1]).mean()), curve))
    return measured


def draw_agreement(measured: Sequence[Agreement]) -> Figure:
    """Draw the calibration curve of each certainty, and its AUROC."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    left.plot([0, 1], [0, 1], color='0.8')
    for certainty, color in zip(measured, COLORS):
        left.plot(*certainty.curve.T, 'o-', color=color, label=certainty.name)
        bar = right.barh(certainty.name, certainty.auroc, color=color)
        right.bar_label(bar, [f' {certainty.auroc:.3f}'])
    left.set(xlabel='certainty, in tenths of the detections', ylabel='share of right detections',
             xlim=(0, 1), ylim=(0, 1))
    left.legend(fontsize='small')
    right.invert_yaxis()
    right.axvline(0.5, color='0.8', zorder=0)  # chance
    right.set(xlabel='AUROC of right against wrong', xlim=(0, 1.15))
    return figure
