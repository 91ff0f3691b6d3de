"""Mixed precision on a CPU: autocast to bfloat16, with losses and boxes in float32."""

import pytest
import torch
from builders import build, make_batch
from family_builders import FAMILIES, family_config
from tiny import tiny_config, write_tiny_coco

from groupdetr_mmdet.training.options import set_amp
from groupdetr_mmdet.training.runner import build_runner

needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason='there is CUDA')


@pytest.mark.parametrize('family, dtype, rel', [
    *((family, torch.bfloat16, .02) for family in FAMILIES if family != 'dino'),
    ('dino', torch.bfloat16, .05),  # which may select other proposals
    ('conditional', torch.float16, .005)])
def test_losses_and_boxes_are_in_float32(family, dtype, rel):
    model = build(family_config(family))
    inputs, samples = make_batch()
    torch.manual_seed(1)
    expected = sum(model.loss(inputs, samples).values()).item()
    boxes, loss_by_feat = [], model.bbox_head.loss_by_feat
    model.bbox_head.loss_by_feat = lambda cls, bbox, *args, **kwargs: boxes.append(
        bbox) or loss_by_feat(cls, bbox, *args, **kwargs)
    torch.manual_seed(1)
    with torch.autocast('cpu', dtype):
        losses = model.loss(inputs, samples)
    assert boxes[0].dtype == torch.float32
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    loss = sum(losses.values())
    assert loss.item() == pytest.approx(expected, rel=rel)
    loss.backward()
    assert all(x.grad.isfinite().all() for x in model.parameters() if x.grad is not None)


@needs_cpu
def test_a_run_trains_in_bfloat16(tmp_path):
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
