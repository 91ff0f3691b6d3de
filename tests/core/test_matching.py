"""The matching is that of the stock assigner, group by group."""
import pytest
import torch
from builders import MATCH_COSTS, make_batch
from mmdet.models.task_modules import HungarianAssigner
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData

from groupdetr_mmdet import assigner as assigner_module
from groupdetr_mmdet.assigner import GroupHungarianAssigner
from groupdetr_mmdet.errors import ConfigError

K, N, NUM_CLASSES, META = 3, 10, 5, dict(img_shape=(64, 96))


def predictions(num_rows=K * N, seed=0, num_classes=NUM_CLASSES):
    g = torch.Generator().manual_seed(seed)
    boxes = torch.cat([torch.rand(num_rows, 2, generator=g),
                       torch.rand(num_rows, 2, generator=g) * .4 + .05], 1)
    return torch.randn(num_rows, num_classes, generator=g), boxes


def instances(scores, boxes):
    scale = boxes.new_tensor([96, 64, 96, 64])
    return InstanceData(scores=scores, bboxes=bbox_cxcywh_to_xyxy(boxes) * scale)


def ground_truth(num_gts, seed=1, num_classes=NUM_CLASSES):
    scores, boxes = predictions(num_gts, seed, num_classes)
    return InstanceData(labels=scores.argmax(1), bboxes=instances(scores, boxes).bboxes)


needs_lapx = pytest.mark.skipif(
    assigner_module.lapjvr_batch is None, reason='lapx 0.11 is not installed')


@pytest.mark.parametrize('solver, at_once', [
    pytest.param('lapx', 9, marks=needs_lapx), pytest.param('lapx', 2**18, marks=needs_lapx),
    ('scipy', 1)])
@pytest.mark.parametrize('num_gts', [0, 1, 4, N, N + 7])
def test_assignment_equals_k_stock_assigners(num_gts, solver, at_once, monkeypatch):
    """With both solvers, and with costs computed piece by piece."""
    monkeypatch.setattr(assigner_module, 'CPU_COSTS_AT_ONCE', at_once)
    if solver == 'scipy':
        monkeypatch.setattr(assigner_module, 'lapjvr_batch', None)
    pred, gts = instances(*predictions()), ground_truth(num_gts)
    result = GroupHungarianAssigner(MATCH_COSTS, num_query_groups=K).assign(pred, gts, META)
    stock = [HungarianAssigner(MATCH_COSTS).assign(pred[g * N:(g + 1) * N], gts, META)
             for g in range(K)]
    assert torch.equal(result.gt_inds, torch.cat([r.gt_inds for r in stock]))
    assert torch.equal(result.labels, torch.cat([r.labels for r in stock]))
    assert result.num_gts == num_gts
    assert (result.gt_inds > 0).sum() == K * min(N, num_gts)


@pytest.mark.parametrize('match_costs', [
    MATCH_COSTS,
    [dict(type='ClassificationCost', weight=1.), dict(type='BBoxL1Cost', weight=5.)],
    dict(type='IoUCost', weight=1.),
])
def test_all_layers_and_images_equal_one_at_a_time(match_costs):
    assigner = GroupHungarianAssigner(match_costs, num_query_groups=K)
    _, samples = make_batch(num_gts=(3, 0, 2), sizes=[(64, 96)] * 3)
    layers = [[predictions(seed=10 * layer + i) for i in range(3)] for layer in range(2)]
    scores, boxes = (torch.stack([torch.stack([image[j] for image in layer]) for layer in layers])
                     for j in range(2))
    gts = [sample.gt_instances for sample in samples]
    pairs = assigner.match_layers(scores, boxes, gts, [META] * 3, NUM_CLASSES)
    assert pairs.rows.shape == pairs.gts.shape == (2, K * 5)
    for layer in range(2):
        expected = set()
        for image, first_gt in enumerate((0, 3, 3)):
            found = assigner.assign(
                instances(scores[layer, image], boxes[layer, image]), gts[image], META).gt_inds
            expected |= {((layer * 3 + image) * K * N + row, first_gt + found[row].item() - 1)
                         for row in found.nonzero().flatten().tolist()}
        assert set(zip(pairs.rows[layer].tolist(), pairs.gts[layer].tolist())) == expected


def test_costs_of_the_classes_in_the_image_are_all_that_is_needed():
    """With COCO's match costs the other classes are left out, and nothing changes."""
    scores, boxes = (x[None] for x in predictions(num_classes=20))
    gts = ground_truth(4, num_classes=20)
    costs = []
    for all_classes in (False, True):
        assigner = GroupHungarianAssigner(MATCH_COSTS, num_query_groups=K)
        if all_classes:
            assigner.costs_read_matched_classes_only = lambda: False
        costs.append(assigner._image_costs(scores, boxes, gts, META, 20))
    torch.testing.assert_close(*costs)


def test_groups_are_counted():
    by_queries, by_groups, neither = (
        GroupHungarianAssigner(MATCH_COSTS, *x) for x in ((2, N), (2, ), ()))
    assert [by_queries.count_groups(x * N) for x in (1, 2)] == [1, 2], 'inference keeps one'
    assert by_groups.count_groups(N) == 2
    for assigner, rows in ((by_queries, N + 1), (by_groups, N + 1), (neither, N)):
        with pytest.raises(ConfigError):
            assigner.count_groups(rows)


def test_half_precision_and_no_predictions():
    pred, gts = instances(*predictions()), ground_truth(3)
    pred.scores = (pred.scores * 20).half()
    assigner = GroupHungarianAssigner(MATCH_COSTS, num_query_groups=K)
    expected = assigner.assign(pred.to(torch.float32), gts, META)
    assert torch.equal(assigner.assign(pred, gts, META).gt_inds, expected.gt_inds)
    assert assigner.assign(pred[:0], gts, META).gt_inds.shape == (0, )
