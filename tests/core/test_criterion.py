"""The one-pass criterion against plain sums."""
import pytest
import torch
import torch.nn.functional as F
from builders import build, detector_config, make_batch
from mmdet.models.losses import FocalLoss
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh

from groupdetr_mmdet.losses import loss_terms, sum_layers


@pytest.mark.parametrize('alpha, gamma', [(0.25, 2.0), (0.6, 1.5), (0.25, 0.0)])
@pytest.mark.parametrize('weights', [(1., 3.), (1., 1.)])
def test_focal_sums_and_gradients_equal_autograd(alpha, gamma, weights):
    torch.manual_seed(0)
    logits = (4 * torch.randn(2, 2, 6, 5, dtype=torch.float32)).requires_grad_()
    rows, labels = torch.tensor([[0, 3, 11], [12, 14, 20]]), torch.tensor([[1, 4, 0], [2, 2, 3]])
    loss = FocalLoss(alpha=alpha, gamma=gamma)
    sums = sum_layers(loss_terms(loss), logits, rows, labels)
    weights = torch.tensor(weights)
    grad, = torch.autograd.grad((sums * weights).sum(), logits)
    targets = torch.full((2, 2, 6), 5)
    targets.view(-1)[rows] = labels
    expected = torch.stack([
        loss(x.flatten(0, 1), t.flatten(), reduction_override='sum')
        for x, t in zip(logits, targets)])
    torch.testing.assert_close(sums, expected, atol=1e-5, rtol=1e-5)
    expected_grad, = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-4)


def test_focal_sums_are_exact_to_a_millionth():
    """Those of a large batch, whose terms differ by many orders of magnitude, in float64."""
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 3300, 40) - 4.6  # as the classification bias starts
    rows, labels = torch.arange(0, 13200, 330).view(2, 20), torch.arange(40).view(2, 20)
    sums = sum_layers(loss_terms(FocalLoss()), logits, rows, labels)
    exact = logits.double()
    targets = F.one_hot(torch.zeros(1, dtype=torch.long), 40).new_zeros(exact.shape).double()
    targets.view(-1, 40)[rows, labels] = 1
    cross_entropy = F.binary_cross_entropy_with_logits(exact, targets, reduction='none')
    weight = (.75 - .5 * targets) * (exact.sigmoid() - targets).abs() ** 2
    torch.testing.assert_close(
        sums.double(), (weight * cross_entropy).flatten(1).sum(1), rtol=1e-6, atol=0)


def predict_and_match(model, num_gts=(3, 2)):
    """Logits, boxes, ground truth, and matched pairs of each layer."""
    inputs, samples = make_batch(num_gts=num_gts)
    scores, boxes = model.bbox_head(
        **model.forward_transformer(model.extract_feat(inputs), samples))
    arguments = scores, boxes, *zip(*((s.gt_instances, s.metainfo) for s in samples))
    return arguments, model.bbox_head.assigner.match_layers(*arguments, 5)


@pytest.mark.parametrize('loss_cls', [
    dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    dict(type='FocalLoss', use_sigmoid=True, loss_weight=2.0),
])
def test_any_classification_loss_of_mmdet_plugs_in(loss_cls):
    """Its sum over all queries and classes, without the fast path of the focal loss."""
    config = detector_config()
    config['bbox_head']['loss_cls'] = loss_cls
    if not loss_cls['use_sigmoid']:
        config['train_cfg']['assigner']['match_costs'][0] = dict(type='ClassificationCost')
    model = build(config)
    (scores, boxes, gts, metas), pairs = predict_and_match(model)
    loss = model.bbox_head.loss_by_feat(scores, boxes, gts, metas)['loss_cls']
    targets = torch.full(scores.shape[:-1], 5)
    targets.view(-1)[pairs.rows] = torch.cat([g.labels for g in gts])[pairs.gts]
    expected = MODELS.build(loss_cls)(
        scores[-1].flatten(0, 1), targets[-1].flatten(), reduction_override='sum') / (3 * 5)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize('num_gts', [(14, 2), (25, 0)])
def test_boxes_that_no_query_can_take_count_in_the_normalizer(num_gts):
    """Official rule: ground truth times K, also where an image has more boxes than queries."""
    model = build(detector_config(num_queries=10))
    (scores, boxes, gts, metas), pairs = predict_and_match(model, num_gts)
    assert pairs.rows.shape == (2, 3 * sum(min(10, n) for n in num_gts))
    loss = model.bbox_head.loss_by_feat(scores, boxes, gts, metas)['loss_bbox']
    targets = torch.cat([bbox_xyxy_to_cxcywh(gt.bboxes) / torch.tensor(
        [*meta['img_shape'][::-1]] * 2) for gt, meta in zip(gts, metas)])
    distance = F.l1_loss(
        boxes.flatten(0, 2)[pairs.rows[-1]], targets[pairs.gts[-1]], reduction='sum')
    torch.testing.assert_close(loss, 5 * distance / (3 * sum(num_gts)))
