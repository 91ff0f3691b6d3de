"""Deformable attention that keeps no sampled value equals the one that keeps them all."""
import functools

import pytest
import torch
from mmcv.ops import multi_scale_deform_attn as mmcv_module

from groupdetr_mmdet.ops import deformable

OURS, STOCK = deformable.deformable_attention, mmcv_module.multi_scale_deformable_attn_pytorch
SHAPES = torch.tensor([[5, 7], [3, 4], [1, 2]])


def make_inputs(num_queries: int = 11, dtype: torch.dtype = torch.float64) -> tuple:
    """Values, locations also outside of the image, and weights of 2 images, heads and points."""
    torch.manual_seed(0)
    keys = int(SHAPES.prod(1).sum())
    value = torch.randn(2, keys, 2, 4, dtype=dtype)
    locations = torch.rand(2, num_queries, 2, len(SHAPES), 2, 2, dtype=dtype) * 1.4 - .2
    weights = torch.rand(2, num_queries, 2, len(SHAPES), 2, dtype=dtype)
    return tuple(x.requires_grad_() for x in (value, locations, weights))


def run(attention, value, locations, weights) -> list:
    out = attention(value, SHAPES, locations, weights)
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, (value, locations, weights), cotangent)]


@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize('samples_at_once', [1, 100, 2**20])
def test_values_and_gradients_are_those_of_mmcv(monkeypatch, samples_at_once, dtype, tol):
    monkeypatch.setattr(deformable, 'SAMPLES_AT_ONCE', samples_at_once)
    inputs = make_inputs(dtype=dtype)
    for found, expected in zip(run(OURS, *inputs), run(STOCK, *inputs)):
        scale = max(1., expected.abs().max().item())
        torch.testing.assert_close(found, expected, atol=tol * scale, rtol=0)


def test_under_autocast_locations_keep_their_precision():
    value, locations, weights = make_inputs(dtype=torch.float32)
    halves = value.bfloat16(), weights.bfloat16()
    expected = run(STOCK, halves[0].float(), locations, halves[1].float())
    with torch.autocast('cpu', torch.bfloat16):
        out = OURS(halves[0], SHAPES, locations, halves[1])
    torch.testing.assert_close(out, expected[0], atol=1e-5, rtol=0)
    (grad, ) = torch.autograd.grad(out.sum(), locations)
    assert grad.dtype == torch.float32


def kept_bytes(function) -> int:
    """Bytes that the backward pass will need."""
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        function()
    return sum(kept.values())


def test_nothing_is_kept_but_the_inputs():
    value, locations, weights = make_inputs(num_queries=200)
    inputs = sum(x.untyped_storage().nbytes() for x in (value, locations, weights))
    ours, others = (kept_bytes(functools.partial(f, value, SHAPES, locations, weights))
                    for f in (OURS, STOCK))
    assert ours == inputs and others > 2 * inputs
