"""Losses and gradients of RF-DETR's criterion, recorded for random predictions."""
import json
from pathlib import Path

import golden
import pytest
import torch
from builders import collate, detector_config
from mmdet.registry import MODELS

SPEC = json.loads((Path(__file__).parent / 'losses.json').read_text())


def randn(name: str, size: int) -> torch.Tensor:
    shape = SPEC['layers'], SPEC['images'], SPEC['groups'] * SPEC['queries'], size
    return golden._randn(name, shape, SPEC['seed'])


@pytest.mark.parametrize('name, loss_cls', [
    ('focal', dict(type='FocalLoss', use_sigmoid=True)), ('ia_bce', dict(type='IABCELoss'))])
def test_classification_loss_is_the_official_one(name, loss_cls):
    config = detector_config(SPEC['queries'], SPEC['groups'], SPEC['classes'])
    config['bbox_head']['loss_cls'] = dict(
        loss_cls, alpha=SPEC['alpha'], gamma=SPEC['gamma'], loss_weight=SPEC['weight'])
    logits = (randn('logits', SPEC['classes']) * 1.5 - 2).requires_grad_()
    boxes = randn('boxes', 4).sigmoid().requires_grad_()
    targets = golden.targets(dict(config=dict(SPEC, num_classes=SPEC['classes'])))
    _, samples = collate([torch.zeros(3, 64, 96)] * SPEC['images'], targets)
    losses = MODELS.build(config).bbox_head.loss_by_feat(
        logits, boxes, [x.gt_instances for x in samples], [x.metainfo for x in samples])
    for layer, expected in enumerate(SPEC['results'][name]):
        prefix = '' if layer == SPEC['layers'] - 1 else f'd{layer}.'
        for term in ('loss_cls', 'loss_bbox', 'loss_iou'):
            assert losses[prefix + term].item() == pytest.approx(expected[term], rel=1e-5)
        grad, of_boxes = torch.autograd.grad(
            losses[prefix + 'loss_cls'], (logits, boxes), retain_graph=True, allow_unused=True)
        assert grad.norm().item() == pytest.approx(expected['grad_logits_norm'], rel=1e-5)
        assert of_boxes is None  # the IoU has no gradient
