"""Denoising queries of DN-DETR; what holds for all families is in test_families.py."""
import pytest
import torch
from builders import build, make_batch
from family_builders import family_config
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh

from groupdetr_mmdet.dn_detr import DnQueryGenerator

CLASSES, N = 50, 7


def generator(**kwargs) -> DnQueryGenerator:
    torch.manual_seed(0)
    kwargs.setdefault('group_cfg', dict(dynamic=True, num_groups=None, num_dn_queries=12))
    return DnQueryGenerator(
        num_classes=CLASSES, embed_dims=16, num_matching_queries=N, **kwargs)


@pytest.mark.parametrize('num_gts', [(3, 2), (0, 4), (1, 1), (0, 0), (20, 3)])
def test_as_many_denoising_groups_as_fit_of_positives_alone(num_gts):
    generate, (_, samples) = generator(), make_batch(num_gts=num_gts, num_classes=CLASSES)
    query, anchors, mask, meta = generate(samples)
    most = max(num_gts)
    groups = max(1, 12 // most) if most else 1
    assert meta == dict(num_denoising_queries=groups * most, num_denoising_groups=groups)
    assert query.shape == (2, groups * most, 16) and anchors.shape == (2, groups * most, 4)
    rows = [torch.full((most, most), True)] * groups
    visible = torch.block_diag(*rows, torch.full((N, N), True))
    visible[:groups * most, groups * most:] = True  # denoising queries see the matching ones
    assert torch.equal(mask, ~visible)
    for image, count in enumerate(num_gts):
        real = query[image].unflatten(0, (groups, most))[:, :count, -1]
        padding = query[image].unflatten(0, (groups, most))[:, count:]
        assert (real == 1).all() and not padding.any()


def test_without_noise_the_queries_are_the_objects():
    generate, (_, samples) = generator(), make_batch(num_classes=CLASSES)
    generate.label_noise_scale = generate.box_noise_scale = 0.
    query, anchors, *_ = generate(samples)
    for image, sample in enumerate(samples):
        gts = sample.gt_instances
        height, width = sample.img_shape
        for group in range(4):
            rows = slice(3 * group, 3 * group + len(gts))
            boxes = bbox_cxcywh_to_xyxy(anchors[image, rows].sigmoid())
            assert torch.allclose(boxes * torch.tensor([width, height] * 2), gts.bboxes, atol=1e-2)
            assert torch.equal(query[image, rows, :-1], generate.label_embedding(gts.labels))


def test_the_noise_is_that_of_the_paper():
    generate = generator()
    labels, boxes = torch.full((20000, ), 3), torch.tensor([[.4, .3, .6, .7]]).repeat(20000, 1)
    content = generate.generate_dn_label_query(labels, 1)[:, :-1]
    kept = (content == generate.label_embedding.weight[3]).all(1).float().mean()
    assert kept.item() == pytest.approx(.8 + .2 / CLASSES, abs=.01)
    noise = generate.generate_dn_bbox_query(boxes, 1).sigmoid() - bbox_xyxy_to_cxcywh(boxes[:1])
    most = torch.tensor([.2 / 2, .4 / 2, .2, .4]) * .4
    assert torch.allclose(noise.amax(0), most, atol=1e-3)
    assert torch.allclose(noise.amin(0), -most, atol=1e-3)
    assert torch.allclose(noise.std(0), most / 3**.5, rtol=.02)


def test_padding_is_not_supervised_and_perfect_boxes_cost_nothing():
    """In DINO padding is background."""
    model = build(family_config('dn', 1))
    _, samples = make_batch(num_gts=(1, 3))
    gts, metas = [x.gt_instances for x in samples], [x.metainfo for x in samples]
    scores, boxes = torch.randn(2, 2, 6, 5), torch.zeros(2, 2, 2, 3, 4)  # two denoising groups
    scores.requires_grad_()
    for image, (gt, meta) in enumerate(zip(gts, metas)):
        scale = torch.tensor([*meta['img_shape'][::-1]] * 2)
        boxes[:, image, :, :len(gt)] = bbox_xyxy_to_cxcywh(gt.bboxes) / scale
    losses = model.bbox_head.loss_dn(scores, boxes.flatten(2, 3), gts, metas, 2)
    assert losses['dn_loss_bbox'].max() < 1e-6 and losses['dn_loss_iou'].max() < 1e-5
    sum(x.sum() for x in losses.values()).backward()
    assert scores.grad.any(-1)[0].tolist() == [[True, False, False] * 2, [True] * 6]


@torch.no_grad()
@pytest.mark.parametrize('num_query_groups', [1, 3])
def test_matching_queries_do_not_see_the_ground_truth(num_query_groups):
    model = build(family_config('dn', num_query_groups))
    (inputs, samples), (_, others) = make_batch(), make_batch(seed=1, num_gts=(5, 1))
    outputs = []
    for batch in samples, others:
        heads = model.forward_transformer(model.extract_feat(inputs), batch)
        hidden = heads['hidden_states'].unflatten(2, (num_query_groups, -1))
        outputs.append(hidden[..., -6:, :])
        assert hidden.size(3) == 6 + heads['dn_meta']['num_denoising_queries'] // num_query_groups
    torch.testing.assert_close(*outputs)


@torch.no_grad()
def test_at_inference_it_is_dab_detr_whose_pattern_is_the_unknown_label():
    model = build(family_config('dn', 1)).eval()
    config = family_config('dab', None)
    stock = build(dict(config, num_patterns=1)).eval()
    state = {name: x for name, x in model.state_dict().items() if 'dn_query' not in name}
    state['patterns.weight'] = model.dn_query_generator.matching_query()[None]
    stock.load_state_dict(state)
    ours, theirs = (m.predict(*make_batch(), rescale=False) for m in (model, stock))
    for a, b in zip(ours, theirs):
        assert torch.equal(a.pred_instances.labels, b.pred_instances.labels)
        torch.testing.assert_close(a.pred_instances.bboxes, b.pred_instances.bboxes)
