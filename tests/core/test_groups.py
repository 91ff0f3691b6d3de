"""Groups never see each other: moving one moves nothing in another."""
import pytest
import torch
from builders import build, detector_config, group_rows, make_batch

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.groups import count_groups, fold_groups, unfold_groups

K, N = 3, 10


@pytest.fixture
def model():
    return build(detector_config(num_queries=N, num_query_groups=K))


def predict(model):
    inputs, samples = make_batch()
    return model.bbox_head(**model.forward_transformer(model.extract_feat(inputs), samples))


def keep_groups(model, *groups):
    """A copy of the model with the queries of some of its groups."""
    rows = model.query_embedding.weight.data.clone()
    smaller = build(detector_config(num_queries=N, num_query_groups=len(groups)))
    state = model.state_dict()
    state['query_embedding.weight'] = torch.cat([rows[group_rows(g, N)] for g in groups])
    smaller.load_state_dict(state)
    return smaller


def test_fold_keeps_images_and_groups_apart():
    bs, width = 2, 4
    image, group, query = torch.meshgrid(
        torch.arange(bs), torch.arange(K), torch.arange(N), indexing='ij')
    x = torch.stack([image, group, query, query], -1).reshape(bs, K * N, width)
    folded = fold_groups(x, N)
    assert folded.shape == (bs * K, N, width)
    for entry, rows in enumerate(folded):
        assert (rows[:, 0] == entry // K).all() and (rows[:, 1] == entry % K).all()
        assert rows[:, 2].tolist() == list(range(N))
    assert torch.equal(unfold_groups(folded, bs), x)
    assert folded.data_ptr() == x.data_ptr(), 'the fold is a view'


def test_rows_that_do_not_divide_are_refused():
    assert count_groups(K * N, N) == K
    with pytest.raises(ConfigError, match='31 predictions .* num_queries=10'):
        count_groups(K * N + 1, N)


@torch.no_grad()
@pytest.mark.parametrize('moved', range(K))
def test_moving_a_group_moves_no_other(model, moved):
    before = predict(model)
    model.query_embedding.weight[group_rows(moved, N)] += torch.randn(N, 32)
    after = predict(model)
    for old, new in zip(before, after):
        for group in range(K):
            same = torch.equal(old[:, :, group_rows(group, N)], new[:, :, group_rows(group, N)])
            assert same == (group != moved)


def test_no_gradient_crosses_groups(model):
    logits, boxes = predict(model)
    (logits[:, :, group_rows(1, N)].sum() + boxes[:, :, group_rows(1, N)].sum()).backward()
    grad = model.query_embedding.weight.grad.reshape(K, N, -1)
    assert grad[1].abs().sum() > 0
    assert grad[[0, 2]].abs().sum() == 0


@torch.no_grad()
def test_all_groups_at_once_equal_each_alone(model):
    together = predict(model)
    for group in range(K):
        alone = predict(keep_groups(model, group))
        for a, b in zip(together, alone):
            torch.testing.assert_close(a[:, :, group_rows(group, N)], b, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_order_of_groups_does_not_matter(model):
    straight, turned = predict(model), predict(keep_groups(model, 2, 0, 1))
    for a, b in zip(straight, turned):
        a = a.unflatten(2, (K, N))[:, :, [2, 0, 1]].flatten(2, 3)
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_fold_equals_a_block_diagonal_mask(model):
    """One joint self-attention in which no group may look at another is the same."""
    layer = model.decoder.layers[0]
    query, pos = torch.randn(2, K * N, 32), torch.randn(2, K * N, 32)
    folded = layer.self_attn(query, query, query_pos=pos, key_pos=pos)
    group = torch.arange(K * N) // N
    layer.self_attn.num_queries = K * N
    mask = group[:, None] != group
    joint = layer.self_attn(query, query, query_pos=pos, key_pos=pos, attn_mask=mask)
    torch.testing.assert_close(folded, joint, atol=1e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('group', range(K))
def test_inference_keeps_the_asked_group(model, group):
    in_training = [x[:, :, group_rows(group, N)] for x in predict(model)]
    config = detector_config(num_queries=N, num_query_groups=K)
    config['test_cfg']['query_group'] = group
    chosen = build(config)
    chosen.load_state_dict(model.state_dict())
    for a, b in zip(in_training, predict(chosen.eval())):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_losses_are_the_mean_over_groups_alone(model):
    """K groups supervise as K detectors would, each with one group."""
    inputs, samples = make_batch()
    together = model.loss(inputs, samples)
    alone = [keep_groups(model, group).loss(inputs, samples) for group in range(K)]
    for name, value in together.items():
        mean = sum(losses[name] for losses in alone) / K
        torch.testing.assert_close(value, mean, atol=1e-6, rtol=1e-5)
