"""Mixed precision on a CPU: autocast to bfloat16, with losses and boxes in float32."""
from pathlib import Path

import pytest
import torch
from builders import build, detector_config, make_batch
from family_builders import FAMILIES, family_config
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
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
    model.bbox_head.loss_by_feat = lambda *args: boxes.append(args[1]) or loss_by_feat(*args)
    torch.manual_seed(1)
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.loss(inputs, samples)
    assert boxes[0].dtype == torch.float32
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    rel = .05 if family == 'dino' else .02  # which may select other proposals
    assert sum(losses.values()).item() == pytest.approx(expected, rel=rel)


@needs_cpu
@pytest.mark.parametrize('accumulative_counts', [1, 2])
def test_the_wrapper_trains_in_bfloat16(accumulative_counts):
    cfg = Config(dict(optim_wrapper=dict(
        type='AmpOptimWrapper', dtype='bfloat16', loss_scale='dynamic',
        accumulative_counts=accumulative_counts, optimizer=dict(type='AdamW', lr=1e-3))))
    set_amp(cfg)
    model = build(
        dict(detector_config(), data_preprocessor=dict(type='mmdet.DetDataPreprocessor')))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    kinds = set()
    model.decoder.layers[0].ffn.layers[1].register_forward_hook(
        lambda module, args, out: kinds.add(out.dtype))
    inputs, samples = make_batch()
    losses = [model.train_step(dict(inputs=list(inputs), data_samples=samples), wrapper)['loss']
              for _ in range(6)]
    assert kinds == {torch.bfloat16} and losses[-1] < losses[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@needs_cpu
def test_a_run_with_amp(tmp_path: Path):
    cfg = tiny_config(write_tiny_coco(tmp_path / 'data'))
    cfg.work_dir = str(tmp_path / 'work')
    cfg.train_cfg.max_epochs = 1
    set_amp(cfg)
    runner = build_runner(cfg)
    runner.train()
    assert type(runner.optim_wrapper).__name__ == 'BFloat16OptimWrapper'
