"""What holds for proposals, denoising queries and the encoder's loss."""
import pytest
import torch
from builders import build, make_batch
from family_builders import family_config

from groupdetr_mmdet.errors import ConfigError

K, N = 3, 6


def prepare(model):
    """What the decoder and the head get, and the memory."""
    inputs, samples = make_batch()
    encoder_inputs, _ = model.pre_transformer(model.extract_feat(inputs), samples)
    encoder_outputs = model.forward_encoder(**encoder_inputs)
    kwargs = dict(batch_data_samples=samples) if hasattr(model, 'dn_query_generator') else {}
    return model.pre_decoder(**encoder_outputs, **kwargs)


def selected_points(model):
    """Reference points of the matching queries, shape (bs, K, N, 4)."""
    return prepare(model)[0]['reference_points'].unflatten(1, (K, -1))[:, :, -N:]


@torch.no_grad()
@pytest.mark.parametrize('family', ['two_stage', 'tied_two_stage', 'dino'])
def test_every_group_selects_the_best_proposals(family):
    """Slices of the best K * N would leave group 0 the best; with equal heads all get them."""
    model = build(family_config(family))
    points = selected_points(model)
    assert not torch.equal(points[:, 0], points[:, 1])  # each has heads of its own
    for name, parameter in model.group_parameters():
        if name != 'query_embedding.weight':
            parameter.copy_(parameter.chunk(K)[0].repeat(K, *[1] * (parameter.dim() - 1)))
    points = selected_points(model)
    assert torch.equal(points[:, 0], points[:, 1]) and torch.equal(points[:, 0], points[:, 2])


def test_only_the_kept_group_runs_at_inference():
    model = build(family_config('dino')).eval()
    rows = []
    model.memory_trans_fc.register_forward_hook(lambda m, args, out: rows.append(out.shape[-1]))
    with torch.no_grad():
        model.predict(*make_batch())
    assert rows == [model.embed_dims]


@pytest.mark.parametrize('family', ['deformable', 'dino'])
def test_encoder_predictions_are_one_set_however_many(family):
    """By what they are: their number divides by K, and by N, and yet they are no groups."""
    head = build(family_config(family)).bbox_head
    _, samples = make_batch(num_gts=(1, 1))
    gts, metas = [s.gt_instances for s in samples], [s.metainfo for s in samples]
    scores = torch.full((2, K * N, 5), -9., requires_grad=True)
    boxes = torch.rand(2, K * N, 4, requires_grad=True)
    _, loss_bbox, _ = head.loss_by_feat_single(scores, boxes, gts, metas)
    loss_bbox.backward()
    assert boxes.grad.flatten(1).count_nonzero(1).tolist() == [4, 4]  # one box of each image


@torch.no_grad()
def test_every_group_has_denoising_queries_of_its_own():
    model = build(family_config('dino'))
    decoder_inputs, head_inputs = prepare(model)
    noisy = decoder_inputs['reference_points'].unflatten(1, (K, -1))[:, :, :-N]
    assert noisy.shape[1] * noisy.shape[2] == head_inputs['dn_meta']['num_denoising_queries'] > 0
    assert not torch.equal(noisy[:, 0], noisy[:, 1]) and not torch.equal(noisy[:, 1], noisy[:, 2])


@pytest.mark.parametrize('family, head', [
    ('two_stage', 'DeformableDETRHead'), ('dino', 'DINOHead'), ('dn', 'DABDETRHead'),
    ('dab', 'ConditionalDETRHead')])
def test_a_head_that_does_not_fit_its_detector_is_refused(family, head):
    """A stock head supervises the encoder's predictions of a single group."""
    config = family_config(family)
    config['bbox_head']['type'] = head
    with pytest.raises(ConfigError, match=f'bbox_head.type={head} .* to .*Head'):
        build(config)


@pytest.mark.parametrize('family', ['two_stage', 'dino'])
@pytest.mark.parametrize('training', [True, False])
def test_images_with_fewer_feature_points_than_queries_are_named(family, training):
    model = build(family_config(family, num_queries=40)).train(training)
    with pytest.raises(ConfigError, match='num_queries=40 .* feature points'):
        model(*make_batch(sizes=((32, 32), ) * 2), mode='loss' if training else 'predict')
