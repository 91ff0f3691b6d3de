"""Losses in validation, of a batch, and those that take the box into account."""
from typing import Dict

import pytest
import torch
import torch.nn.functional as F
from builders import build, detector_config, make_batch, perturbed
from family_builders import family_config
from mmdet.registry import MODELS
from torch import Tensor, nn

from groupdetr_mmdet import IABCELoss, MALoss
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.losses import loss_terms, sum_layers

QUALITY_LOSSES = 'QualityFocalLoss', 'IABCELoss', 'MALoss'


def test_validation_loss_needs_no_gradients_and_uses_one_group_in_eval_mode():
    model = build(detector_config())
    inputs, samples = make_batch()
    with torch.no_grad():
        training = model.loss(inputs, samples)
        evaluation = model.eval().loss(inputs, samples)
    one_group = build(detector_config(num_query_groups=1))
    one_group.load_state_dict(model.stock_state_dict())
    assert all(x.isfinite() for x in training.values())
    assert_equal(evaluation, one_group.loss(inputs, samples))


def dense_loss(name: str, logits: Tensor, one_hot: Tensor, ious: Tensor) -> Tensor:
    """The losses as their papers write them, summed; one-hot targets, and IoU of each query."""
    p, ious = logits.sigmoid(), ious[..., None] * one_hot
    if name == 'QualityFocalLoss':
        weight = (ious - p).abs() ** 2
        return (weight * F.binary_cross_entropy(p, ious, reduction='none')).sum((1, 2, 3))
    if name == 'MALoss':
        weight = p.detach() ** 1.5 * (1 - one_hot) + one_hot
        return (weight * F.binary_cross_entropy(p, ious ** 1.5, reduction='none')).sum((1, 2, 3))
    t = (p ** .25 * ious ** .75).clamp(min=.01).detach() * one_hot
    negative = (1 - t) * one_hot + p ** 2 * (1 - one_hot)
    return -(t * p.log() + negative * (1 - p).log()).sum((1, 2, 3))


@pytest.mark.parametrize('name', QUALITY_LOSSES)
def test_sums_and_gradients_are_those_of_dense_targets(name):
    torch.manual_seed(0)
    logits = (2 * torch.randn(2, 2, 6, 5)).requires_grad_()
    rows, labels = torch.tensor([[0, 3, 11], [12, 14, 20]]), torch.tensor([[1, 4, 0], [2, 2, 3]])
    ious = torch.tensor([[0., .3, 1.], [.9, .5, 1e-3]])
    one_hot, dense_ious = torch.zeros(2, 2, 6, 5), torch.zeros(2, 2, 6)
    one_hot.view(-1, 5)[rows, labels] = 1
    dense_ious.view(-1)[rows] = ious
    sums = sum_layers(loss_terms(MODELS.build(dict(type=name))), logits, rows, labels, ious)
    exact = logits.detach().double().requires_grad_()
    expected = dense_loss(name, exact, one_hot.double(), dense_ious.double())
    torch.testing.assert_close(sums.double(), expected, rtol=1e-6, atol=1e-6)
    weights = torch.tensor([1., 3.])
    grad, = torch.autograd.grad((sums * weights).sum(), logits)
    expected_grad, = torch.autograd.grad((expected * weights).sum(), exact)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', QUALITY_LOSSES)
def test_large_logits_give_finite_losses_and_gradients(name):
    logits = torch.tensor([-200., 200.]).expand(1, 1, 2, 2).clone().requires_grad_()
    rows, labels = torch.tensor([[0, 1]]), torch.tensor([[0, 1]])
    terms = loss_terms(MODELS.build(dict(type=name)))
    loss = sum_layers(terms, logits, rows, labels, torch.tensor([[.5, 0.]]))
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', QUALITY_LOSSES)
def test_the_losses_are_summed_in_float32_under_autocast(name, dtype):
    logits, ious = torch.randn(2, 1, 6, 5).to(dtype), torch.tensor([[.7], [.2]])
    terms = loss_terms(MODELS.build(dict(type=name)))
    arguments = terms, logits, torch.tensor([[0], [6]]), torch.tensor([[1], [2]]), ious
    expected = sum_layers(*arguments)
    with torch.autocast('cpu', dtype=dtype):
        found = sum_layers(*arguments)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def make(family: str, name: str, **kwargs) -> nn.Module:
    config = family_config(family, **kwargs)
    config['bbox_head']['loss_cls'] = dict(type=name, loss_weight=2.)
    return perturbed(build(config))


def assert_equal(losses: Dict[str, Tensor], expected: Dict[str, Tensor]) -> None:
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(
            value.flatten(), expected[name].flatten(), atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize('name', QUALITY_LOSSES)
@pytest.mark.parametrize('family', ['conditional', 'two_stage', 'dino'])
def test_one_group_has_the_losses_of_the_stock_head(same_noise, family, name):
    """Those of encoder and denoising queries, too, and the gradients; mmdet computes the IoU."""
    model = make(family, name, num_query_groups=1, width=256)
    stock = make(family, name, num_query_groups=None, width=256)
    stock.load_state_dict(model.state_dict())
    losses = [x.loss(*make_batch()) for x in (model, stock)]
    assert_equal(*losses)
    for x in losses:
        sum(value.sum() for value in x.values()).backward()
    for p, q in zip(model.bbox_head.parameters(), stock.bbox_head.parameters()):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize('name', QUALITY_LOSSES)
@pytest.mark.parametrize('family, num_gts', [
    *((family, (3, 2)) for family in ('conditional', 'two_stage', 'dino', 'dn')),
    ('conditional', (0, 0))])
def test_groups_have_the_mean_of_the_losses_of_each_alone(same_noise, family, num_gts, name):
    model, alone = make(family, name), []
    for group in range(3):
        one = make(family, name, num_query_groups=1)
        one.load_state_dict(model.stock_state_dict(group))
        alone.append(one.loss(*make_batch(num_gts=num_gts)))
    count = 3 if any(num_gts) else 1  # without objects the official normalizer is 1
    expected = {name: sum(x[name] for x in alone) / count for name in alone[0]}
    assert_equal(model.loss(*make_batch(num_gts=num_gts)), expected)
    assert expected['loss_cls'] > 0 and (expected['loss_bbox'] > 0) == any(num_gts)


def test_a_loss_of_ones_own_gets_label_and_iou():
    """As in mmdet, where a subclass of QualityFocalLoss is one."""
    model = make('conditional', 'QualityFocalLoss')
    losses = model.loss(*make_batch())

    class OwnLoss(type(model.bbox_head.loss_cls)):
        pass

    model.bbox_head.loss_cls = OwnLoss(loss_weight=2.)
    assert_equal(model.loss(*make_batch()), losses)


@pytest.mark.parametrize('loss', [IABCELoss(), MALoss()])
def test_a_head_without_iou_is_told_what_fits(loss):
    with pytest.raises(ConfigError, match=f"{type(loss).__name__} .* use type='FocalLoss'"):
        loss(torch.zeros(2, 5), torch.tensor([1, 5]))
