"""How far the groups agree on an object, and whether that tells right from wrong.

A trained detector has K groups that all learned to find every object, with one decoder. They are
an ensemble at the price of one decoder pass.
"""
import contextlib
import io
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

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
        group_instances (InstanceData): Detections of all groups, the kept one among them, with
            the group of each in ``query_groups``.
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
    """Pair detections of one label one-to-one, by the largest sum of IoU.

    Returns:
        tuple[ndarray, ndarray]: Rows of ``first`` and of ``second``, pair by pair.
    """
    overlaps = bbox_overlaps(first.bboxes, second.bboxes)
    overlaps[(overlaps < IOU_THR) | (first.labels[:, None] != second.labels)] = 0
    overlaps = overlaps.cpu().numpy()
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    found = overlaps[rows, columns] > 0
    return rows[found], columns[found]


# Does agreement predict correctness?

Result = Dict[str, Any]


def mean_score(result: Result) -> float:
    """Mean over all groups, which have 0 where they did not find the object."""
    return sum(score or 0 for score in result['group_scores']) / len(result['group_scores'])


def box_steadiness(result: Result) -> float:
    """1 minus the spread of the box, relative to its size and at most 1."""
    _, _, width, height = result['bbox']
    return 1 - min(1., np.mean(result['box_std']) / max(1e-6, (width * height)**.5))


# How sure one may be of a detection, from 0 to 1, by an entry of results.json.
CERTAINTIES: Dict[str, Callable[[Result], float]] = {
    'score': lambda result: result['score'],
    'groups that found it': lambda result: result['found_by'] / len(result['group_scores']),
    'mean score of the groups': mean_score,
    'steadiness of the box': box_steadiness,
}


class Agreement(NamedTuple):
    """What was measured of one certainty."""
    name: str
    auroc: float  # probability that a right detection has more of it than a wrong one
    gain: Tuple[float, float]  # AUROC minus the score's, 95 % of resampled sets of images
    calibration_error: float  # mean distance of certainty and share of right ones
    curve: np.ndarray  # of each tenth of the detections, (mean certainty, share of right ones)


def is_correct(results: Sequence[Result], coco: COCO) -> Tuple[np.ndarray, np.ndarray]:
    """Tell right detections from wrong ones as COCO's evaluation does, at an IoU of 0.5.

    Returns:
        tuple[ndarray, ndarray]: Of each detection, whether it is right, and whether it counts:
        what lies on a crowd does not.
    """
    correct, counts = (np.zeros(len(results), bool) for _ in range(2))
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
    """Measure how well each of ``CERTAINTIES`` tells right detections from wrong ones.

    Args:
        results (Sequence[dict]): ``results.json`` of ``predict --all-groups``.
        coco (COCO): The ground truth.
        num_samples (int): Sets of images, drawn with replacement, for the bounds of the gain.
        seed (int): Of these.
    """
    correct, counts = is_correct(results, coco)
    images = np.array([result['image_id'] for result in results])[counts]
    values = {name: np.array([certainty(x) for x in results])[counts]
              for name, certainty in CERTAINTIES.items()}
    correct = correct[counts]
    by_image = [np.flatnonzero(images == image) for image in np.unique(images)]
    draws = np.random.default_rng(seed).integers(len(by_image), size=(num_samples, len(by_image)))
    samples = [np.concatenate([by_image[i] for i in draw]) for draw in draws]
    score = np.array([auroc(values['score'][rows], correct[rows]) for rows in samples])
    measured = []
    for name, value in values.items():
        gains = [auroc(value[rows], correct[rows]) for rows in samples] - score
        tenths = np.array_split(np.argsort(value, kind='stable'), 10)
        curve = np.array([(value[rows].mean(), correct[rows].mean())
                          for rows in tenths if len(rows)])
        measured.append(Agreement(
            name, auroc(value, correct), tuple(np.nanpercentile(gains, (2.5, 97.5))),
            float(np.abs(curve[:, 0] - curve[:, 1]).mean()), curve))
    return measured


def draw_agreement(measured: Sequence[Agreement]) -> Figure:
    """Draw the calibration curve of each certainty, and its AUROC."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    left.plot([0, 1], [0, 1], color='0.8')
    for certainty, color in zip(measured, COLORS):
        left.plot(*certainty.curve.T, 'o-', color=color, label=certainty.name)
    left.set(xlabel='certainty, in tenths of the detections', ylabel='share of right detections',
             xlim=(0, 1), ylim=(0, 1))
    left.legend(fontsize='small')
    names = [certainty.name for certainty in measured]
    right.barh(names, [certainty.auroc for certainty in measured],
               color=[color for _, color in zip(measured, COLORS)])
    for row, certainty in enumerate(measured):
        right.text(certainty.auroc, row, f' {certainty.auroc:.3f}', va='center')
    right.invert_yaxis()
    right.axvline(0.5, color='0.8', zorder=0)  # chance
    right.set(xlabel='AUROC of right against wrong', xlim=(0, 1.15))
    return figure
