"""With one group Conditional DETR is the stock detector; test_families.py asks it of all."""
import pytest
import torch
from builders import build, detector_config, make_batch

# Stock mmdet's decoder works at a width of 256 only.
STOCK = dict(num_queries=20, width=256, num_heads=8)


@pytest.fixture(scope='module')
def pair():
    """The stock detector and ours with K = 1, under one state dict."""
    stock = build(detector_config(num_query_groups=None, **STOCK))
    ours = build(detector_config(num_query_groups=1, **STOCK), seed=1)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock, ours


def test_parameters_are_those_of_the_stock_detector(pair):
    stock, ours = pair
    assert [(n, p.shape, p.requires_grad) for n, p in stock.named_parameters()] == \
           [(n, p.shape, p.requires_grad) for n, p in ours.named_parameters()]


@pytest.mark.parametrize('num_gts', [(3, 2), (0, 4), (20, 1)])
def test_losses_and_gradients_are_those_of_the_stock_detector(pair, num_gts):
    inputs, samples = make_batch(num_gts=num_gts)
    grads = []
    results = [model.loss(inputs, samples) for model in pair]
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], atol=1e-5, rtol=1e-5)
    for model, losses in zip(pair, results):
        model.zero_grad()
        sum(losses.values()).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(grad, grads[1][name], atol=1e-3 * scale + 1e-5, rtol=0)


def test_validation_loss_needs_no_gradients_and_uses_one_group_in_eval_mode():
    model = build(detector_config())
    inputs, samples = make_batch()
    with torch.no_grad():
        training = model.loss(inputs, samples)
        evaluation = model.eval().loss(inputs, samples)
    one_group = build(detector_config(num_query_groups=1))
    state = model.state_dict()
    state['query_embedding.weight'] = state['query_embedding.weight'][:10]
    one_group.load_state_dict(state)
    expected = one_group.loss(inputs, samples)
    for name, value in expected.items():
        assert training[name].isfinite()
        torch.testing.assert_close(evaluation[name], value.detach(), atol=1e-6, rtol=1e-5)


def test_batch_equals_its_images_one_by_one():
    model = build(detector_config())
    inputs, samples = make_batch(sizes=((64, 64), (64, 64)), num_gts=(3, 3))
    together = model.loss(inputs, samples)
    alone = [model.loss(inputs[i:i + 1], samples[i:i + 1]) for i in range(2)]
    for name, value in together.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)
