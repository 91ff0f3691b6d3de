"""Mixed precision on a CPU: autocast to bfloat16, with losses and boxes in float32."""
from pathlib import Path

import pytest
import torch
from builders import build, make_batch
from family_builders import FAMILIES, family_config
from tiny import tiny_config, write_tiny_coco

from groupdetr_mmdet.training.options import set_amp
from groupdetr_mmdet.training.runner import build_runner

needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='there is CUDA')


@pytest.mark.parametrize('family', FAMILIES)
def test_losses_and_boxes_are_in_float32(family):
    model = build(family_config(family))
    inputs, samples = make_batch()
    torch.manual_seed(1)
    expected = sum(model.loss(inputs, samples).values()).item()
    boxes, loss_by_feat = [], model.bbox_head.loss_by_feat
    model.bbox_head.loss_by_feat = lambda cls, bbox, *args, **kwargs: boxes.append(
        bbox) or loss_by_feat(cls, bbox, *args, **kwargs)
    torch.manual_seed(1)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(inputs, samples)
    assert boxes[0].dtype == torch.float32
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    rel = .05 if family == 'dino' else .02  # which may select other proposals
    assert sum(losses.values()).item() == pytest.approx(expected, rel=rel)


@needs_cpu
def test_a_run_trains_in_bfloat16(tmp_path: Path):
    cfg = tiny_config(write_tiny_coco(tmp_path / 'data'))
    cfg.work_dir = str(tmp_path / 'work')
    cfg.train_cfg.max_epochs = 1
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
    set_amp(cfg)
    runner = build_runner(cfg)
    kinds = set()
    runner.model.decoder.layers[0].ffn.layers[1].register_forward_hook(
        lambda module, args, out: kinds.add((module.training, out.dtype)))
    runner.train()
    assert (True, torch.bfloat16) in kinds
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}
