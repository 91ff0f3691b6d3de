"""Every number of the official code's forward, loss and backward pass is met.

Recorded and computed in float64: float32 would compare this machine with another one.
"""
from typing import Iterator

import pytest
import torch
from parity import golden
from parity.case import PARITY, Case, from_official

CASES = sorted(path.with_suffix('') for path in PARITY.glob('case_*.json'))
assert CASES, f'{PARITY} has no case_*.json'
LOSSES = dict(loss_ce='loss_cls', loss_bbox='loss_bbox', loss_giou='loss_iou')


@pytest.fixture(params=CASES, ids=lambda stem: stem.name)
def case(request) -> Iterator[Case]:
    case = Case(request.param)
    with golden.float64():
        yield case


def assert_close(actual: torch.Tensor, expected, scale: float = 1.) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=1e-9 * scale, rtol=1e-9)


@torch.no_grad()
def test_every_layer_predicts_the_official_logits_and_boxes(case):
    logits, boxes = case.predict_layers()
    for layer in range(case.config['dec_layers']):
        assert_close(logits[layer], case.arrays[f'train_logits_{layer}'])
        assert_close(boxes[layer], case.arrays[f'train_boxes_{layer}'])


def test_losses_and_gradient_norms_are_the_official_ones(case):
    losses = case.model.loss(case.inputs, case.samples)
    expected = dict(case.spec['losses'])
    total = expected.pop('total')
    for name, value in expected.items():
        kind, _, layer = name.rpartition('_') if name[-1].isdigit() else (name, '', None)
        ours = f'd{layer}.{LOSSES[kind]}' if layer else LOSSES[kind]
        assert losses.pop(ours).item() == pytest.approx(value, rel=1e-9), name
    assert not losses
    loss = sum(case.model.loss(case.inputs, case.samples).values())
    assert loss.item() == pytest.approx(total, rel=1e-9)
    loss.backward()
    names = {name: next(iter(from_official({name: None}))) for name in case.spec['grad_norms']}
    parameters = dict(case.model.named_parameters())
    trained = {name for name, p in parameters.items() if p.grad is not None}
    assert trained == set(names.values())
    for official, name in names.items():
        expected_norm = case.spec['grad_norms'][official]
        norm = parameters[name].grad.norm().item()
        assert norm == pytest.approx(expected_norm, rel=1e-9, abs=1e-12), name


@torch.no_grad()
def test_last_layer_matches_the_official_pairs(case):
    logits, boxes = case.predict_layers()
    samples = case.samples
    pairs = case.model.bbox_head.assigner.match_layers(
        logits, boxes, [s.gt_instances for s in samples], [s.metainfo for s in samples],
        case.config['num_classes'])
    rows, gts = pairs.rows[-1], pairs.gts[-1]
    num_rows, first_gt = logits.size(2), 0
    for image, sample in enumerate(samples):
        mine = (rows // num_rows) % len(samples) == image
        actual = torch.stack([rows[mine] % num_rows, gts[mine] - first_gt])
        expected = torch.as_tensor(case.arrays[f'match_last_{image}'])
        assert sorted(actual.T.tolist()) == sorted(expected.T.tolist())
        first_gt += len(sample.gt_instances)


@torch.no_grad()
def test_inference_predicts_as_the_official_code(case):
    case.model.eval()
    logits, boxes = case.predict_layers()
    assert_close(logits[-1], case.arrays['eval_logits'])
    assert_close(boxes[-1], case.arrays['eval_boxes'])
    if 'top_scores_0' not in case.arrays:
        return
    results = case.model.predict(case.inputs, case.samples, rescale=False)
    for image, result in enumerate(results):
        found = result.pred_instances
        assert_close(found.scores, case.arrays[f'top_scores_{image}'])
        assert found.labels.tolist() == case.arrays[f'top_labels_{image}'].tolist()
        # The official code does not clip its boxes to the image.
        expected = torch.as_tensor(case.arrays[f'top_boxes_{image}'])
        h, w = result.img_shape
        expected = expected.clamp(min=0).minimum(expected.new_tensor([w, h, w, h]))
        assert_close(found.bboxes, expected, max(h, w))
