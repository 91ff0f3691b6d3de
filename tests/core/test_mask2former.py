"""Mask2Former with groups of queries; what holds in every family is in test_families.py."""
import pytest
import torch
from builders import build, perturbed
from mask_builders import make_mask_batch, mask2former_config, same_points
from torch import nn

from groupdetr_mmdet.errors import ConfigError

K, N = 3, 6


@pytest.fixture
def drawn_points(monkeypatch) -> None:
    monkeypatch.setattr(torch, 'rand', same_points())


def make(num_query_groups=K, **kwargs) -> nn.Module:
    return perturbed(build(mask2former_config(num_query_groups, **kwargs)))


def one_group(model: nn.Module, group: int) -> nn.Module:
    alone = build(mask2former_config(1))
    alone.load_state_dict(model.stock_state_dict(group))
    return alone.train(model.training)


def outputs(model: nn.Module) -> list:
    """Logits of classes and of masks of all layers, rows last but one."""
    logits, masks = model(*make_mask_batch(), mode='tensor')
    return [torch.stack(logits), torch.stack([x.flatten(2) for x in masks])]


def assert_equal(found, expected, **kwargs) -> None:
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, **(kwargs or dict(atol=1e-5, rtol=1e-4)))


@pytest.mark.parametrize('num_gts', [(3, 2), (0, 2), (0, 0)])
def test_losses_are_the_mean_over_groups_alone(drawn_points, num_gts):
    model = make()
    together = model.loss(*make_mask_batch(num_gts=num_gts))
    alone = [one_group(model, group).loss(*make_mask_batch(num_gts=num_gts)) for group in range(K)]
    assert together.keys() == alone[0].keys() and len(together) == 9
    for name, loss in together.items():
        mean = sum(x[name] for x in alone) / K
        torch.testing.assert_close(loss, mean, atol=1e-5, rtol=1e-4, msg=name)
    sum(together.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize('num_stuff', [0, 2])
def test_one_group_is_the_stock_detector(num_stuff):
    """Parameters, outputs, losses with the same random points, gradients, and results."""
    model = make(1, num_stuff=num_stuff)
    stock = build(mask2former_config(None, num_stuff=num_stuff))
    stock.load_state_dict(model.state_dict())
    assert_equal(outputs(model), outputs(stock))
    losses = []
    for m in (model, stock):
        torch.manual_seed(0)
        losses.append(m.loss(*make_mask_batch(num_stuff=num_stuff)))
        sum(losses[-1].values()).backward()
    assert losses[0].keys() == losses[1].keys()
    assert_equal(losses[0].values(), losses[1].values())
    for (name, p), q in zip(model.named_parameters(), stock.parameters()):
        if q.grad is not None:
            tolerance = 1e-4 * q.grad.abs().max().item() + 1e-6
            torch.testing.assert_close(p.grad, q.grad, atol=tolerance, rtol=0, msg=name)
    assert_same_results(model.eval(), stock.eval(), num_stuff)


@torch.no_grad()
def assert_same_results(model: nn.Module, stock: nn.Module, num_stuff: int = 0) -> None:
    ours, theirs = (m.predict(*make_mask_batch(num_stuff=num_stuff)) for m in (model, stock))
    for a, b in zip(ours, theirs):
        assert len(a.pred_instances) and torch.equal(
            a.pred_instances.labels, b.pred_instances.labels)
        assert (a.pred_instances.masks != b.pred_instances.masks).float().mean() < 1e-3
        torch.testing.assert_close(a.pred_instances.scores, b.pred_instances.scores, atol=1e-4,
                                   rtol=1e-3)
        if num_stuff:
            same = a.pred_panoptic_seg.sem_seg == b.pred_panoptic_seg.sem_seg
            assert same.float().mean() > .999


def test_inference_is_that_of_the_stock_detector_with_a_group(group=2):
    config = mask2former_config()
    config.test_cfg.query_group = group
    model = build(config).eval()
    stock = build(mask2former_config(None)).eval()
    stock.load_state_dict(model.stock_state_dict())
    rows = []
    head = model.panoptic_head.transformer_decoder.layers[0].register_forward_hook(
        lambda module, args, out: rows.append(out.size(1)))
    assert_same_results(model, stock)
    head.remove()
    assert rows == [N], 'masks of one group alone are computed'


def test_every_object_is_matched_once_in_each_group():
    model = make()
    head = model.panoptic_head
    inputs, samples = make_mask_batch(num_gts=(4, 2))
    logits, masks = model(inputs, samples, mode='tensor')
    gts = head.preprocess_gt([x.gt_instances for x in samples], [None, None])
    for image, count in enumerate((4, 2)):
        labels, _, targets, weights, *_ = head._get_targets_single(
            logits[-1][image], masks[-1][image], gts[image], samples[image].metainfo)
        rows = weights.nonzero().squeeze(1)
        assert torch.bincount(rows // N).tolist() == [count] * K
        for group in labels[rows].view(K, count):
            assert sorted(group.tolist()) == sorted(gts[image].labels.tolist())


@torch.no_grad()
def test_each_group_segments_what_it_segments_alone():
    config = mask2former_config()
    config.test_cfg.update(each_group=True, query_group=1)
    model = build(config).eval()
    for i, sample in enumerate(model.predict(*make_mask_batch())):
        assert sample.query_group == 1
        for group in range(K):
            alone = one_group(model, group).eval().predict(*make_mask_batch())[i].pred_instances
            found = sample.group_instances[sample.group_instances.query_groups == group]
            assert torch.equal(found.labels, alone.labels)
            assert (found.masks != alone.masks).float().mean() < 1e-3
            if group == 1:
                assert torch.equal(sample.pred_instances.masks, found.masks)


@pytest.mark.parametrize('change, error', [
    ({'panoptic_head.num_query_groups': 2}, 'panoptic_head.num_query_groups=2 contradicts'),
    ({'train_cfg.assigner.type': 'HungarianAssigner'}, 'matches all groups as one set'),
    ({'train_cfg.assigner.num_queries': 7}, 'assigner.num_queries=7 contradicts'),
    ({'test_cfg.query_group': 3}, 'query_group=3 is not one of the groups'),
    ({'num_query_groups': 0}, 'num_query_groups=0'),
    ({'train_cfg.groups_at_once': 1}, 'groups_at_once=1')])
def test_contradictions(change, error):
    config = mask2former_config()
    for key, value in change.items():
        part, *_, last = [config, *key.split('.')]
        for name in key.split('.')[:-1]:
            part = part[name]
        part[last] = value
    with pytest.raises(ConfigError, match=error):
        build(config)
