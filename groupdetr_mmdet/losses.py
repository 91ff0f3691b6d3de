"""Classification losses of a layer's queries, without one-hot targets.

All logits ``x`` are summed as background, ``p^gamma softplus(x)`` with ``p = sigmoid(x)``, and the
sum is corrected at the few logits of matched classes, where the losses differ.
"""
import functools
from typing import Callable, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from mmdet.models.losses import FocalLoss, QualityFocalLoss
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor, nn

from .errors import ConfigError
from .ops.layer_sums import LayerSums


class Terms(NamedTuple):
    """The loss of each logit, element by element."""
    background: Callable[[Tensor], Tensor]  # of logits of background
    matched: Callable[[Tensor, Tensor], Tensor]  # of logits of matched classes, and the IoU
    background_weight: float = 1.  # factor of the sum, which saves a pass over all logits


class IoUAwareLoss(QualityFocalLoss):
    """Base of losses whose target is the IoU of the matched box, without its gradient.

    A subclass of ``QualityFocalLoss``, because mmdet's DETR heads compute the IoU for that loss
    alone.

    Args:
        gamma (float): Focusing exponent.
        use_sigmoid (bool): Must be True, as for ``QualityFocalLoss``.
        reduction (str): 'none', 'mean' or 'sum'. Defaults to 'mean'.
        loss_weight (float): Factor of the loss. Defaults to 1.0.
    """

    def __init__(self, gamma: float, use_sigmoid: bool = True, reduction: str = 'mean',
                 loss_weight: float = 1.0) -> None:
        super().__init__(use_sigmoid, gamma, reduction, loss_weight)
        self.gamma = gamma

    def background(self, logits: Tensor) -> Tensor:
        """Compute the loss of each logit as background; any shape."""
        return background_focal(logits, self.gamma)

    def matched(self, logits: Tensor, ious: Tensor) -> Tensor:
        """Compute the loss of logits of matched classes; all of one shape."""
        raise NotImplementedError

    def forward(self, pred: Tensor, target: Tuple[Tensor, Tensor],
                weight: Optional[Tensor] = None, avg_factor: Optional[Union[int, Tensor]] = None,
                reduction_override: Optional[str] = None) -> Tensor:
        """Compute the loss, for the heads of mmdet.

        Args:
            pred (Tensor): Logits, shape (num_queries, num_classes).
            target (tuple[Tensor, Tensor]): Labels, ``num_classes`` for background, and the IoU of
                matched boxes, each of shape (num_queries, ).
            weight (Tensor, optional): Factor of each query, shape (num_queries, ).
            avg_factor (int | Tensor, optional): Number that the sum is divided by.
            reduction_override (str, optional): 'none', 'mean' or 'sum'.

        Raises:
            ConfigError: If ``target`` has no IoU.
        """
        if isinstance(target, Tensor):
            raise ConfigError(f'loss_cls.type={type(self).__name__} requires the IoU of matched '
                              "boxes, which this head does not compute: use type='FocalLoss'.")
        labels, ious = target
        rows = ((labels >= 0) & (labels < pred.size(1))).nonzero().squeeze(1)
        pred, at_pairs = pred.float(), (rows, labels[rows])
        losses = self.background(pred)
        losses[at_pairs] = self.matched(pred[at_pairs], ious[rows].float())
        return self.loss_weight * weight_reduce_loss(
            losses.sum(1), weight, reduction_override or self.reduction, avg_factor)


@MODELS.register_module()
class IABCELoss(IoUAwareLoss):
    """IoU-aware binary cross-entropy of Align-DETR (arXiv:2304.07527), as in RF-DETR.

    The target of the matched class is ``t = max(p^alpha IoU^(1 - alpha), 0.01)``, without
    gradient. The weight of background is ``p^gamma``, with gradient.

    Args:
        alpha (float): Share of the score in the target. Defaults to 0.25.
        gamma (float): Focusing exponent of background. Defaults to 2.0.
        kwargs: As for :class:`IoUAwareLoss`.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, **kwargs) -> None:
        super().__init__(gamma, **kwargs)
        self.alpha = alpha

    def matched(self, logits: Tensor, ious: Tensor) -> Tensor:
        """Compute the cross-entropy with the target ``t``; see :meth:`IoUAwareLoss.matched`."""
        target = logits.detach().sigmoid() ** self.alpha * ious ** (1 - self.alpha)
        return cross_entropy(logits, target.clamp(min=0.01))


@MODELS.register_module()
class MALoss(IoUAwareLoss):
    """Matchability-aware loss of DEIM (arXiv:2412.04234).

    The target of the matched class is ``IoU^gamma``. The weight of background is ``p^gamma``,
    without gradient.

    Args:
        gamma (float): Exponent of target and weight. Defaults to 1.5.
        kwargs: As for :class:`IoUAwareLoss`.
    """

    def __init__(self, gamma: float = 1.5, **kwargs) -> None:
        super().__init__(gamma, **kwargs)

    def background(self, logits: Tensor) -> Tensor:
        """Compute the weighted cross-entropy; see :meth:`IoUAwareLoss.background`."""
        return logits.detach().sigmoid() ** self.gamma * F.softplus(logits)

    def matched(self, logits: Tensor, ious: Tensor) -> Tensor:
        """Compute the cross-entropy with the IoU; see :meth:`IoUAwareLoss.matched`."""
        return cross_entropy(logits, ious ** self.gamma)


def loss_terms(loss_cls: nn.Module) -> Optional[Terms]:
    """Return the terms of a loss without its ``loss_weight``, None for an unknown loss."""
    if isinstance(loss_cls, IoUAwareLoss):
        return Terms(loss_cls.background, loss_cls.matched)
    if type(loss_cls) is FocalLoss and not loss_cls.activated:
        alpha, gamma = loss_cls.alpha, loss_cls.gamma
        return Terms(
            functools.partial(background_focal, gamma=gamma),
            lambda logits, ious: alpha * background_focal(-logits, gamma), 1 - alpha)
    if type(loss_cls) is QualityFocalLoss and not loss_cls.activated:
        beta = loss_cls.beta
        return Terms(
            functools.partial(background_focal, gamma=beta),
            lambda logits, ious: (ious - logits.sigmoid()).abs() ** beta * cross_entropy(
                logits, ious))
    return None


def sum_layers(terms: Terms, logits: Tensor, rows: Tensor, labels: Tensor,
               ious: Optional[Tensor] = None) -> Tensor:
    """Sum a loss over the queries and classes of each layer, float32 of shape (num_layers, ).

    Args:
        terms (Terms): The loss of each logit.
        logits (Tensor): Shape (num_layers, bs, K * N, num_classes).
        rows, labels (Tensor): Matched queries, as in :class:`MatchedPairs`, and their classes.
        ious (Tensor, optional): IoU of their boxes, in the shape of ``rows``.
    """
    weight, num_classes = terms.background_weight, logits.size(-1)
    matched_logits = rows % logits[0, ..., 0].numel() * num_classes + labels  # in their layer

    def sum_layer(x: Tensor, layer: int) -> Tensor:
        x = x.reshape(-1)
        matched, iou = x[matched_logits[layer]], None if ious is None else ious[layer]
        correction = terms.matched(matched, iou) - weight * terms.background(matched)
        return weight * terms.background(x).sum() + correction.sum()

    with torch.autocast(logits.device.type, enabled=False):  # it would halve the sums' precision
        return LayerSums.apply(logits, sum_layer)


def background_focal(logits: Tensor, gamma: float) -> Tensor:
    """Focal loss of background without alpha, ``p^gamma softplus(x)`` with ``p = sigmoid(x)``."""
    return logits.sigmoid() ** gamma * F.softplus(logits)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each logit, finite for large logits too."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction='none')
