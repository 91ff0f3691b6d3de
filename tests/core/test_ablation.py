"""The ablations of the paper's Table 7 differ from Group DETR in the omitted part alone."""

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
def test_groups_see_each_other_in_joint_self_attention_alone(family, separate):
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
    one.load_state_dict(dict(joint.state_dict()))  # without the metadata with N
    torch.testing.assert_close(predict_scores(joint), predict_scores(one))


def test_denoising_queries_have_no_joint_self_attention():
    model = build(dict(family_config('dino'), separate_self_attn=False))
    with pytest.raises(ConfigError, match='separate_self_attn=False has no mask for denoising'):
        model.loss(*make_batch())


@pytest.mark.parametrize('num_gts', [0, 1, 4])
def test_every_object_is_matched_with_k_queries_at_the_least_cost(num_gts):
    """For a stock head, which asks for an image of a layer, and for all layers at once."""
    assigner = TASK_UTILS.build(dict(
        type='OneToManyHungarianAssigner', match_costs=MATCH_COSTS, num_query_groups=K))
    _, samples = make_batch(sizes=[(64, 64)] * 2, num_gts=(num_gts, 2))
    gts, metas = [x.gt_instances for x in samples], [x.metainfo for x in samples]
    scores, boxes = (torch.rand(LAYERS, 2, K * N, n) for n in (5, 4))
    pairs = assigner.match_layers(scores, boxes, gts, metas, 5)
    first_gt = 0
    for image, (targets, meta) in enumerate(zip(gts, metas)):
        for layer in range(LAYERS):
            found = InstanceData(scores=scores[layer, image],
                                 bboxes=bbox_cxcywh_to_xyxy(boxes[layer, image]) * 64)
            result = assigner.assign(found, targets, meta)
            rows, = result.gt_inds.nonzero(as_tuple=True)
            matched = result.gt_inds[rows] - 1
            assert matched.bincount(minlength=len(targets)).tolist() == [K] * len(targets)
            assert torch.equal(result.labels[rows], targets.labels[matched])
            if len(targets):
                cost = assigner.match_cost_matrix(found, targets, meta)
                least = cost.repeat(1, K)[linear_sum_assignment(cost.repeat(1, K))].sum()
                torch.testing.assert_close(cost[rows, matched].sum(), least)
            expected = zip((rows + (layer * 2 + image) * K * N).tolist(),
                           (matched + first_gt).tolist())
            assert {*expected} <= {*zip(pairs.rows[layer].tolist(), pairs.gts[layer].tolist())}
        first_gt += len(targets)
    assert pairs.rows.shape == (LAYERS, K * (num_gts + 2))


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
