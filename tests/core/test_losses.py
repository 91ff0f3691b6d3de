"""Losses in validation, and of a batch."""
import torch
from builders import build, detector_config, make_batch


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
