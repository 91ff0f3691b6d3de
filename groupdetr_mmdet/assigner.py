"""Matching: the queries of each group one-to-one with the ground truth."""
import functools
from typing import List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmdet.models.task_modules import AssignResult, HungarianAssigner
from mmdet.models.task_modules.assigners.match_cost import BBoxL1Cost, FocalLossCost, IoUCost
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .errors import ConfigError
from .groups import check_count, count_groups

try:
    from lap import lapjvr_batch
except ImportError:  # no lapx, or lapx < 0.11: scipy solves the same problems, more slowly
    lapjvr_batch = None


SOLVER_THREADS_FROM = 2**20  # costs of an image; for fewer, starting threads takes longer
CPU_COSTS_AT_ONCE = 2**18  # costs of an image that fit into the cache


class MatchedPairs(NamedTuple):
    """Matched queries and ground truth, each field of shape (num_layers, pairs of a layer)."""
    rows: Tensor  # indices into predictions of shape (num_layers * bs * K * N, ...)
    gts: Tensor  # indices into the concatenated ground truth of all images

    @classmethod
    def of_images(cls, pairs: Sequence[Sequence[np.ndarray]], num_rows: int,
                  num_gts: Sequence[int], device: torch.device) -> 'MatchedPairs':
        """Join the pairs of images, each (rows, gts) of shape (num_layers, pairs).

        ``rows`` count the ``num_rows`` predictions of a layer and image, ``gts`` the objects of
        an image.
        """
        first_gts, joined = np.cumsum([0, *num_gts]), []
        for image, (rows, gts) in enumerate(pairs):
            first_rows = (np.arange(len(rows))[:, None] * len(pairs) + image) * num_rows
            joined.append(np.stack([rows + first_rows, gts + first_gts[image]]))
        return cls(*torch.from_numpy(np.concatenate(joined, 2)).to(device))


@TASK_UTILS.register_module()
class GroupHungarianAssigner(HungarianAssigner):
    """Match every group of queries one-to-one with the ground truth (paper, Section 3.2).

    An object is matched with K queries, one of each group. With one group this is
    ``HungarianAssigner``.

    Args:
        match_costs (list[dict] | dict): Registered match costs.
        num_query_groups (int, optional): Number of groups K. Set it for a stock detector, whose
            ``num_queries`` counts the queries of all groups.
        num_queries (int, optional): Queries of one group, N. A detector with groups sets it, and
            K is then the number of predictions divided by N.

    Raises:
        ConfigError: If ``num_query_groups`` is not an integer of at least 1.
    """

    def __init__(self, match_costs: Union[List[dict], dict],
                 num_query_groups: Optional[int] = None,
                 num_queries: Optional[int] = None) -> None:
        super().__init__(match_costs)
        if num_query_groups is not None:
            check_count('num_query_groups', num_query_groups, 'it is the number of groups')
        self.num_query_groups, self.num_queries = num_query_groups, num_queries

    def count_groups(self, num_preds: int) -> int:
        """Return the number of groups in ``num_preds`` predictions of a layer and image.

        Raises:
            ConfigError: If ``num_preds`` is not a multiple of N or K, or neither is set.
        """
        if self.num_queries is not None:
            return count_groups(num_preds, self.num_queries)
        if self.num_query_groups is None:
            raise ConfigError(f'model.train_cfg.assigner.num_query_groups is missing: set it to '
                              f'the number of groups that the {num_preds} queries make.')
        if num_preds % self.num_query_groups:
            raise ConfigError(
                f'{num_preds} predictions do not divide into num_query_groups='
                f'{self.num_query_groups} groups: set model.num_queries to a multiple of '
                'train_cfg.assigner.num_query_groups, and in two stages or DINO use the head of '
                "this package, which matches the encoder's proposals separately.")
        return self.num_query_groups

    def assign(self, pred_instances: InstanceData, gt_instances: InstanceData,
               img_meta: Optional[dict] = None, **kwargs) -> AssignResult:
        """Match the predictions of one layer and image, for the heads of mmdet.

        Args:
            pred_instances (InstanceData): ``scores``, logits of shape (K * N, num_classes), and
                ``bboxes``, xyxy in pixels, shape (K * N, 4).
            gt_instances (InstanceData): ``labels``, shape (G, ), and ``bboxes``, xyxy in pixels,
                shape (G, 4).
            img_meta (dict, optional): Has ``img_shape``.

        Returns:
            AssignResult: ``gt_inds``, shape (K * N, ), has 0 for background, else the index of
            the ground truth plus one.

        Raises:
            ConfigError: If the predictions do not divide into groups, or a label is not below
                ``num_classes``.
            FloatingPointError: If a match cost is NaN or infinite.
        """
        check_labels(gt_instances.labels.cpu().numpy(), pred_instances.scores.size(-1))
        gt_inds = gt_instances.labels.new_zeros(len(pred_instances))
        labels = gt_inds - 1
        if len(gt_instances) and len(pred_instances):
            pred_instances = pred_instances.to(torch.float32)
            cost = self.match_cost_matrix(pred_instances, gt_instances, img_meta).cpu().numpy()
            if not np.isfinite(cost).all():
                raise FloatingPointError(
                    'NaN or infinite match cost of the predictions for '
                    f'{(img_meta or {}).get("img_path", "an image")} ({len(gt_instances)} boxes): '
                    'stopped before the optimizer step; lower optim_wrapper.optimizer.lr, or look '
                    'at the boxes of this image.')
            pairs = self.solve(cost, self.count_groups(len(cost)))
            rows, cols = torch.from_numpy(np.stack(pairs)).to(gt_inds.device)
            gt_inds[rows] = cols + 1
            labels[rows] = gt_instances.labels[cols]
        return AssignResult(len(gt_instances), gt_inds, max_overlaps=None, labels=labels)

    @torch.no_grad()
    def match_cost_matrix(self, pred_instances: InstanceData, gt_instances: InstanceData,
                          img_meta: Optional[dict]) -> Tensor:
        """Sum the match costs of all pairs, float32 of shape (num_preds, G).

        Arguments as for :meth:`assign`; the predictions may be of several layers.
        """
        device, at_once, costs = gt_instances.labels.device.type, len(pred_instances), []
        if device == 'cpu':
            at_once = max(1, CPU_COSTS_AT_ONCE // max(1, len(gt_instances)))
        with torch.autocast(device, enabled=False):
            for i in range(0, len(pred_instances), at_once):
                instances = pred_instances[i:i + at_once], gt_instances
                of_each = (match_cost(*instances, img_meta) for match_cost in self.match_costs)
                costs.append(functools.reduce(torch.add, of_each).float())
        return torch.cat(costs)

    def match_layers(self, cls_scores: Tensor, bbox_preds: Tensor,
                     batch_gt_instances: Sequence[InstanceData], batch_img_metas: Sequence[dict],
                     num_classes: int, num_groups: Optional[int] = None) -> MatchedPairs:
        """Match all layers, images and groups of a batch.

        Costs are computed once per image, for all layers and groups, and copied to the host once
        per batch.

        Args:
            cls_scores, bbox_preds, batch_gt_instances, batch_img_metas: As for
                :meth:`GroupCriterion.loss_by_feat`.
            num_classes (int): Number of categories.
            num_groups (int, optional): Number of groups, for predictions other than the
                decoder's.

        Raises:
            ConfigError: If the predictions do not divide into groups, or a label is not below
                ``num_classes``.
            FloatingPointError: If a prediction or a match cost is NaN or infinite.
        """
        cls_scores, bbox_preds = cls_scores.detach().float(), bbox_preds.detach().float()
        num_groups = num_groups or self.count_groups(cls_scores.size(2))
        costs = [self._image_costs(cls_scores[:, i], bbox_preds[:, i], gts, meta, num_classes)
                 for i, (gts, meta) in enumerate(zip(batch_gt_instances, batch_img_metas))]
        *costs, labels, cls_sums, box_sums = copy_to_host(
            *costs, torch.cat([gts.labels for gts in batch_gt_instances]),
            cls_scores.flatten(1).sum(1), bbox_preds.flatten(1).sum(1))
        check_labels(labels, num_classes)
        check_finite(cls_sums, box_sums, costs, batch_img_metas)
        num_layers, _, num_rows, _ = cls_scores.shape
        pairs = []
        for cost in costs:
            rows, gts = self.solve(cost, num_groups, num_layers)
            pairs.append((rows.reshape(num_layers, -1) % num_rows, gts.reshape(num_layers, -1)))
        return MatchedPairs.of_images(
            pairs, num_rows, [len(gts) for gts in batch_gt_instances], cls_scores.device)

    def solve(self, cost: np.ndarray, num_groups: int,
              num_layers: int = 1) -> Tuple[np.ndarray, np.ndarray]:
        """Match each layer and group of an image one-to-one.

        ``cost`` must be finite, of shape (num_layers * K * N, G). Returns the matched rows,
        ascending, and their columns.
        """
        return solve_problems(cost, num_layers * num_groups)

    def _image_costs(self, cls_scores: Tensor, bbox_preds: Tensor, gt_instances: InstanceData,
                     img_meta: dict, num_classes: int) -> Tensor:
        height, width = img_meta['img_shape'][:2]
        scale = bbox_preds.new_tensor([width, height, width, height])
        # Clamp: check_labels reports a wrong label later; here it would be a device-side assert.
        labels = gt_instances.labels.clamp(0, num_classes - 1)
        if len(labels) < cls_scores.size(-1) and self.costs_read_matched_classes_only():
            cls_scores = cls_scores.index_select(-1, labels)
            labels = torch.arange(len(labels), device=labels.device)
        boxes = bbox_cxcywh_to_xyxy(bbox_preds.flatten(0, 1)) * scale
        # Columns contiguous in memory: pairwise costs then iterate over predictions innermost.
        boxes = boxes.T.contiguous().T
        return self.match_cost_matrix(
            InstanceData(scores=cls_scores.flatten(0, 1), bboxes=boxes),
            InstanceData(labels=labels, bboxes=gt_instances.bboxes), img_meta)

    def costs_read_matched_classes_only(self) -> bool:
        """Return whether the match costs depend on the logits of the image's classes alone.

        ``FocalLossCost`` treats each class separately; computing all classes takes ten times as
        long on COCO. Other costs than mmdet's get all classes, because they may use a softmax.
        """
        return all(type(cost) in (BBoxL1Cost, IoUCost) or
                   type(cost) is FocalLossCost and not cost.binary_input
                   for cost in self.match_costs)


def copy_to_host(*tensors: Tensor) -> List[np.ndarray]:
    """Copy tensors to the host in one transfer, as float32 arrays; integers must be small."""
    flat = torch.cat([x.flatten().float() for x in tensors]).cpu().numpy()
    ends = np.cumsum([x.numel() for x in tensors])[:-1]
    return [part.reshape(x.shape) for part, x in zip(np.split(flat, ends), tensors)]


def solve_problems(cost: np.ndarray, num_problems: int) -> Tuple[np.ndarray, np.ndarray]:
    """Solve assignment problems of least total cost, stacked along the rows.

    ``cost`` must be finite, of shape (num_problems * n, G). Returns the matched rows, ascending,
    and their columns, each of shape (num_problems * min(n, G), ).
    """
    if 0 in cost.shape:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    problems = cost.reshape(num_problems, -1, cost.shape[1])
    if lapjvr_batch is None:
        queries, gts = np.stack([linear_sum_assignment(problem) for problem in problems], 1)
    else:
        queries, gts = np.array(lapjvr_batch(
            problems, extend_cost=True, return_cost=False, precision='float64',
            n_threads=0 if problems.size > SOLVER_THREADS_FROM else 1))
    first_rows = np.arange(num_problems)[:, None] * problems.shape[1]
    return (queries + first_rows).ravel(), gts.ravel()


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Raise a ConfigError for a label outside of ``[0, num_classes)``."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ConfigError(
            f'label {int(wrong[0])} of the data does not fit bbox_head.num_classes={num_classes}: '
            'set model.bbox_head.num_classes to the number of metainfo.classes of the dataset.')


def check_finite(cls_sums: np.ndarray, box_sums: np.ndarray, costs: Sequence[np.ndarray],
                 batch_img_metas: Sequence[dict]) -> None:
    """Raise a FloatingPointError for predictions or costs that are NaN or infinite.

    ``cls_sums`` and ``box_sums`` are sums over each layer, shape (num_layers, ), ``costs`` the
    costs of each image.
    """
    inputs = ', '.join(f'{meta.get("img_path", f"image {i}")} ({cost.shape[1]} boxes)'
                       for i, (meta, cost) in enumerate(zip(batch_img_metas, costs)))
    advice = ('stopped before the optimizer step; lower optim_wrapper.optimizer.lr, or look at '
              f'the loss inputs of this iteration: {inputs}.')
    of_costs = ', its predictions are finite: look at train_cfg.assigner.match_costs; '
    for name, hint, values in (
        ('logits', ': ', cls_sums), ('boxes', ': ', box_sums),
        *((f'match cost of image {i}', of_costs, cost) for i, cost in enumerate(costs))):
        layers = np.flatnonzero(~np.isfinite(values).reshape(len(cls_sums), -1).all(1))
        if layers.size:
            raise FloatingPointError(f'NaN or infinite {name} in decoder layer {layers[0]} '
                                     f'(of {len(cls_sums)}, from 0){hint}{advice}')


@TASK_UTILS.register_module()
class OneToManyHungarianAssigner(GroupHungarianAssigner):
    """Match every object with K queries of any group: naive one-to-many assignment.

    An ablation of the paper (Table 7): one-to-one matching with K copies of every object. The
    number of pairs, and so the scale of the loss, is as with :class:`GroupHungarianAssigner`.
    Arguments as for :class:`GroupHungarianAssigner`.
    """

    def solve(self, cost: np.ndarray, num_groups: int,
              num_layers: int = 1) -> Tuple[np.ndarray, np.ndarray]:
        """Match K copies of every object with the rows of all groups; see the parent."""
        rows, copies = solve_problems(np.tile(cost, num_groups), num_layers)
        return rows, copies % cost.shape[1]
