"""The ablations of the paper's Table 7 differ from Group DETR in what they say, and no more."""

import pytest
import torch
from builders import MATCH_COSTS, build, detector_config, group_rows, make_batch
from family_builders import family_config
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

from groupdetr_mmdet.errors import ConfigError

K, N, LAYERS = 3, 10, 2


def variant(**changes) -> dict:
    config = detector_config(num_queries=N, num_query_groups=K)
    config.update(changes)
    return config


def naive_config() -> dict:
    config = variant(separate_self_attn=False)
    config['train_cfg']['assigner']['type'] = 'OneToManyHungarianAssigner'
    config['test_cfg']['query_group'] = 'all'
    return config


def predict_scores(model: torch.nn.Module) -> torch.Tensor:
    inputs, samples = make_batch()
    outputs = model.forward_transformer(model.extract_feat(inputs), samples)
    return model.bbox_head(outputs['hidden_states'], outputs['references'])[0]


@torch.no_grad()
@pytest.mark.parametrize('separate', [True, False])
@pytest.mark.parametrize('family', ['conditional', 'dab', 'deformable'])
def test_groups_see_each_other_in_joint_self_attention_alone(family: str, separate: bool):
    model = build(dict(family_config(family, num_queries=N), separate_self_attn=separate))
    before = predict_scores(model)
    weight = model.query_embedding.weight
    weight[group_rows(2, N)] += torch.randn(N, weight.size(1))
    old, new = (x[:, :, group_rows(0, N)] for x in (before, predict_scores(model)))
    assert torch.equal(old, new) == separate


@torch.no_grad()
def test_joint_self_attention_is_that_of_one_large_group():
    joint = build(variant(separate_self_attn=False))
    one = build(variant(num_query_groups=1, num_queries=K * N))
    one.load_state_dict(dict(joint.state_dict()))  # without what says N
    torch.testing.assert_close(predict_scores(joint), predict_scores(one))


def test_denoising_queries_have_no_joint_self_attention():
    model = build(dict(family_config('dino'), separate_self_attn=False))
    with pytest.raises(ConfigError, match='separate_self_attn=False has no mask for denoising'):
        model.loss(*make_batch())


def test_every_object_is_matched_with_k_queries_at_the_least_cost():
    assigner = TASK_UTILS.build(dict(
        type='OneToManyHungarianAssigner', match_costs=MATCH_COSTS, num_query_groups=K,
        num_queries=N))
    _, samples = make_batch(num_gts=(3, 2))
    cls_scores, boxes = torch.randn(LAYERS, 2, K * N, 5), torch.rand(LAYERS, 2, K * N, 4)
    gts, metas = [x.gt_instances for x in samples], [x.metainfo for x in samples]
    pairs = assigner.match_layers(cls_scores, boxes, gts, metas, 5)
    assert pairs.rows.shape == (LAYERS, K * 5)
    assert all(row.bincount().tolist() == [K] * 5 for row in pairs.gts)
    first_gt = 0
    for image, (targets, meta) in enumerate(zip(gts, metas)):
        scale = torch.tensor([meta['img_shape'][1], meta['img_shape'][0]] * 2)
        for layer in range(LAYERS):
            predictions = InstanceData(
                scores=cls_scores[layer, image],
                bboxes=bbox_cxcywh_to_xyxy(boxes[layer, image]) * scale)
            cost = assigner.match_cost_matrix(predictions, targets, meta)
            least = cost.repeat(1, K)[linear_sum_assignment(cost.repeat(1, K))].sum()
            rows = pairs.rows[layer] - (layer * 2 + image) * K * N
            here = (0 <= rows) & (rows < K * N)
            assert len(rows[here].unique()) == K * len(targets)
            ours = cost[rows[here], pairs.gts[layer][here] - first_gt].sum()
            torch.testing.assert_close(ours, least)
        first_gt += len(targets)


def test_naive_one_to_many_trains_and_keeps_all_queries():
    model = build(naive_config())
    groups = build(variant())
    losses, expected = model.loss(*make_batch()), groups.loss(*make_batch())
    assert losses.keys() == expected.keys()
    sum(losses.values()).backward()
    assert model.query_embedding.weight.grad.abs().sum(1).all()
    with torch.no_grad():
        assert predict_scores(model.eval()).size(2) == K * N
    sample, _ = model.predict(*make_batch())
    assert len(sample.pred_instances) == 20


@pytest.mark.parametrize('num_gts', [0, 1, 4])
def test_a_stock_head_gets_naive_one_to_many_too(num_gts):
    """What a stock head asks for is what all layers get at once."""
    assigner = TASK_UTILS.build(dict(
        type='OneToManyHungarianAssigner', match_costs=MATCH_COSTS, num_query_groups=K))
    generator = torch.Generator().manual_seed(0)
    scores, boxes = (torch.rand(1, 1, K * N, n, generator=generator) for n in (5, 4))
    labels = torch.arange(num_gts)
    targets = bbox_cxcywh_to_xyxy(torch.rand(num_gts, 4, generator=generator) * 32 + 8)
    gts, meta = InstanceData(labels=labels, bboxes=targets), dict(img_shape=(64, 64))
    result = assigner.assign(
        InstanceData(scores=scores[0, 0], bboxes=bbox_cxcywh_to_xyxy(boxes[0, 0]) * 64), gts, meta)
    pairs = assigner.match_layers(scores, boxes, [gts], [meta], 5)
    expected = torch.zeros(K * N, dtype=torch.long)
    expected[pairs.rows[0]] = pairs.gts[0] + 1
    assert torch.equal(result.gt_inds, expected) and result.num_gts == num_gts
    assert torch.equal(result.labels, expected - 1)
