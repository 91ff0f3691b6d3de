"""Every fast path of the attention gives what the plain one gives."""
import copy
import functools
import shutil

import pytest
import torch
from builders import build, detector_config, make_batch
from family_builders import family_config
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.layers.transformer.utils import ConditionalAttention
from torch import nn

from groupdetr_mmdet.ops import dropout as dropout_module
from groupdetr_mmdet.ops.attention import FusedConditionalAttention
from groupdetr_mmdet.ops.dropout import (CheapDropout, chunks, draw_kept, dropout_attention,
                                         fuse_ffn, relu_dropout)

MASKS = {
    'no mask': None,
    'padding': torch.tensor([[True] * 7, [True] * 5 + [False] * 2])[:, None, None],
    'mask of a group': torch.ones(6, 7).tril(3).bool()
}


def plain(q, k, v, mask, kept, p):
    scores = q @ k.transpose(-1, -2) / q.size(-1)**.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float('-inf'))
    return (scores.softmax(-1) * kept / (1 - p)) @ v


@pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
@pytest.mark.parametrize('chunk', [1, 20, 100, 10**6])
def test_chunks_with_dropout_equal_the_formula(mask, chunk, monkeypatch):
    p, shape = 0.25, (2, 3, 6, 7)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, d, requires_grad=True) for n, d in ((6, 4), (7, 4), (7, 2)))
    kept = (torch.rand(shape) > p).byte()
    monkeypatch.setattr(dropout_module, 'CHUNK', chunk)
    pieces = iter([kept.flatten(0, 1)[heads, rows] for heads, rows in chunks(6, 6, 7)])
    monkeypatch.setattr(dropout_module, 'draw_kept', lambda *_: next(pieces))
    expected = plain(q, k, v, mask, kept, p)
    found = dropout_attention(q, k, v, mask, p)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    grads = [torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (found, expected)]
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-4)


def test_kept_weights_are_drawn_with_the_asked_probability():
    torch.manual_seed(0)
    for p in (0.1, 0.5, 0.9):
        kept = draw_kept((1000, 1001), p).float()
        for column in range(4):  # the 16-bit parts of a 64-bit word are equally random
            assert kept.view(-1)[column::4].mean().item() == pytest.approx(1 - p, abs=3e-3)
    torch.manual_seed(0)
    again = draw_kept((1000, 1001), 0.1)
    torch.manual_seed(0)
    assert torch.equal(again, draw_kept((1000, 1001), 0.1)), 'seeded by torch.manual_seed'


@pytest.mark.parametrize('cross_attn', [False, True])
@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_fused_attention_equals_the_stock_one(cross_attn, padded, dtype):
    torch.manual_seed(0)
    stock, fused = (attention(32, 4, attn_drop=.5, cross_attn=cross_attn).eval()
                    for attention in (ConditionalAttention, FusedConditionalAttention))
    fused.load_state_dict(stock.state_dict(), strict=True)
    num_keys = 9 if cross_attn else 6
    query, key = torch.randn(2, 6, 32, requires_grad=True), torch.randn(2, num_keys, 32)
    kwargs = dict(query_pos=torch.randn(2, 6, 32), key_pos=torch.randn(2, num_keys, 32))
    if cross_attn:
        kwargs.update(ref_sine_embed=torch.randn(2, 6, 32), is_first=True)
    if padded:
        kwargs['key_padding_mask'] = torch.arange(num_keys).expand(2, -1) >= num_keys - 2
    with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
        outs = [m(query, key, **kwargs) for m in (stock, fused)]
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(*outs, atol=tolerance, rtol=tolerance)
    grads = [torch.autograd.grad(out.float().square().sum(), query)[0] for out in outs]
    torch.testing.assert_close(*grads, atol=10 * tolerance, rtol=10 * tolerance)
    assert not torch.allclose(fused.train()(query, key, **kwargs), outs[1].float(), atol=.1)


def train_step(model, *sizes):
    torch.manual_seed(0)
    model.zero_grad()
    losses = model.loss(*make_batch(sizes or ((64, 96), (96, 64))))
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('config', [
    detector_config(), detector_config(dropout=0.1), family_config('dab'),
    family_config('refine'), family_config('dino')])
def test_checkpointed_layers_learn_the_same(config):
    config = copy.deepcopy(config)
    losses, grads = train_step(build(config))
    config['decoder']['num_cp'] = 1
    model = build(config)
    found = train_step(copy.deepcopy(model))
    assert all(parameter.grad is None for parameter in model.parameters()), 'a copy is its own'
    torch.testing.assert_close(found[0], losses, atol=0, rtol=0)
    torch.testing.assert_close(found[1], grads, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('backend, dec_layers', [
    ('aot_eager', 2), pytest.param('inductor', 1, marks=[pytest.mark.long, pytest.mark.skipif(
        shutil.which('g++') is None, reason='torch.compile needs a C++ compiler')])])
def test_compiled_decoder_equals_and_compiles_once_for_all_sizes(monkeypatch, backend, dec_layers):
    monkeypatch.setattr(nn.Module, 'compile', functools.partialmethod(
        nn.Module.compile, backend=backend))
    config = detector_config(dec_layers=dec_layers)
    plain = build(config)
    config['decoder']['compile'] = True
    model = build(config)
    assert model.state_dict().keys() == plain.state_dict().keys()
    train_step(model)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for sizes in (((96, 96), (64, 64)), ((128, 96), (96, 64)), ((64, 224), (96, 160))):
            for found, expected in zip(train_step(model, *sizes), train_step(plain, *sizes)):
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_relu_and_dropout_in_one_equal_one_after_the_other(monkeypatch):
    kept = (torch.rand(40, 30) > 0.2).byte()
    monkeypatch.setattr(dropout_module, 'draw_kept', lambda *_: kept)
    x = torch.randn(40, 30, requires_grad=True)
    expected, found = x.relu() * kept / 0.8, relu_dropout(x, 0.2)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(x)
    grads = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (expected, found)]
    torch.testing.assert_close(*grads)
    assert torch.equal(relu_dropout(x, 0.), x.relu())


def test_dropouts_of_a_layer_are_replaced_and_drop_as_asked():
    layer = build(detector_config(dropout=.2)).decoder.layers[0]
    dropouts = [module for module in layer.modules() if isinstance(module, nn.Dropout)]
    assert dropouts and all(type(module) is CheapDropout for module in dropouts)
    assert all(module.p == .2 for module in dropouts)
    torch.manual_seed(0)
    x = torch.ones(300, 400, requires_grad=True)
    out = dropouts[0](x)
    out.sum().backward()
    assert out.unique().tolist() == [0, 1.25] and torch.equal(x.grad, out)
    assert out.mean().item() == pytest.approx(1, abs=.01)
    assert torch.equal(dropouts[0].eval()(x), x)
    for p, expected in ((0, x), (1, 0 * x)):
        assert torch.equal(CheapDropout(p)(x), expected)


def test_fused_ffn_has_the_parameters_and_results_of_the_stock_one():
    stock = FFN(16, 32, act_cfg=dict(type='ReLU', inplace=True), ffn_drop=0.5).eval()
    fused = copy.deepcopy(stock)
    fuse_ffn(fused)
    fused.eval()
    assert fused.state_dict().keys() == stock.state_dict().keys()
    x = torch.randn(2, 5, 16)
    assert torch.equal(fused(x), stock(x))
    dropped = fused.train().layers[0](torch.randn(100, 16)) == 0
    assert 0.7 < dropped.float().mean() < 0.8, 'half by the ReLU, half of the rest dropped'
