"""Groups that take turns learn what all groups learn at once."""
import contextlib
import shutil
from typing import Dict, Optional, Tuple

import pytest
import torch
import torch.utils.checkpoint
from builders import build, detector_config, make_batch
from family_builders import FAMILIES, family_config
from torch import Tensor

from groupdetr_mmdet import turns
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.ops import dropout

K = 3


def in_turns(config: dict, groups_at_once: Optional[int], dropout: float = 0.) -> dict:
    config['train_cfg']['groups_at_once'] = groups_at_once
    for coder in ('encoder', 'decoder'):
        for part in config[coder]['layer_cfg'].values():
            part.update({key: dropout for key in part if 'drop' in key})
    return config


def step(config: dict, num_gts=(3, 2), seed: int = 1,
         prepare=contextlib.nullcontext) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    """Losses and gradients of a training step."""
    model = build(config)
    inputs, samples = make_batch(num_gts=num_gts)
    torch.manual_seed(seed)
    with prepare():
        losses = model.loss(inputs, samples)
        sum(losses.values()).sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, grads


def assert_same(found: Tuple[dict, dict], expected: Tuple[dict, dict], tol: float = 1e-6) -> None:
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for name, value in b.items():
            scale = 1 + value.abs().max().item()
            torch.testing.assert_close(a[name], value, atol=tol * scale, rtol=0, msg=name)


@pytest.mark.parametrize('num_gts', [(3, 2), (0, 0)])
@pytest.mark.parametrize('groups_at_once', [1, 2])
@pytest.mark.parametrize('family', FAMILIES)
def test_turns_learn_what_all_groups_learn_at_once(family, groups_at_once, num_gts):
    """With a last turn of fewer groups, and with an image that has no object."""
    config = family_config(family, K)
    expected = step(in_turns(config, None), num_gts)
    assert_same(step(in_turns(config, groups_at_once), num_gts), expected)


@contextlib.contextmanager
def without_recomputation():
    original = turns.checkpoint
    turns.checkpoint = lambda function, *args, **_: function(*args)
    try:
        yield
    finally:
        turns.checkpoint = original


@pytest.mark.parametrize('family', ['conditional', 'dab', 'two_stage', 'dino'])
def test_the_backward_pass_draws_the_numbers_of_the_forward_pass(family):
    """Of dropout and of denoising queries, shown by turns whose activations are all kept."""
    config = in_turns(family_config(family, K), 1, dropout=.3)
    kept = step(config, prepare=without_recomputation)
    assert_same(step(config), kept)
    with pytest.raises(AssertionError):  # the numbers matter
        assert_same(step(config, seed=2), kept)
    config['decoder']['num_cp'] = 1
    assert_same(step(config), kept)


def test_the_backward_pass_takes_the_cross_attention_of_the_forward_pass(monkeypatch):
    config = in_turns(detector_config(num_query_groups=K), 1, dropout=.3)
    num_layers = config['decoder']['num_layers']
    softmaxes, compute = [], dropout.softmax_scores
    monkeypatch.setattr(dropout, 'softmax_scores',
                        lambda *args: softmaxes.append(1) or compute(*args))
    model = build(config)
    loss = sum(model.loss(*make_batch()).values())
    assert len(softmaxes) == 2 * num_layers * K
    loss.backward(retain_graph=True)
    assert len(softmaxes) == num_layers * (2 * K + (K - 1) + 2 * K), 'self-attention alone again'
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    loss.backward()
    for param in model.parameters():
        if param.grad is not None:
            torch.testing.assert_close(param.grad, 2 * grads.pop(0))


def test_few_rows_are_decoded_and_matched_at_a_time():
    """The backward pass decodes all turns but the last again, and matches and counts no more."""
    model = build(in_turns(detector_config(num_queries=10, num_query_groups=K), 2))
    rows, matched, counted = [], [], []
    model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs['query'].size(1)), with_kwargs=True)
    head = model.bbox_head
    match, count = head.assigner.match_layers, head.count_targets
    head.assigner.match_layers = lambda *args: matched.append(args[-1]) or match(*args)
    head.count_targets = lambda *args: counted.append(args[1]) or count(*args)
    losses = model.loss(*make_batch())
    assert (rows, matched, counted) == ([20, 10], [2, 1], [K])
    sum(losses.values()).backward()
    assert (rows, matched, counted) == ([20, 10, 20], [2, 1], [K])
    assert len(list(model.decoded_groups)) == K and model.eval().loss(*make_batch())


@pytest.mark.parametrize('groups_at_once', [None, 1])
def test_the_memory_is_projected_once(groups_at_once):
    model = build(in_turns(detector_config(num_query_groups=K), groups_at_once))
    calls = []
    for layer in model.decoder.layers:
        for name in ('kcontent_proj', 'v_proj', 'kpos_proj'):
            getattr(layer.cross_attn, name).register_forward_hook(lambda *_: calls.append(1))
    sum(model.loss(*make_batch()).values()).backward()
    assert len(calls) == 3 * len(model.decoder.layers)


@pytest.mark.parametrize('options', [dict(num_cp=1), dict(num_cp=2)])
@pytest.mark.parametrize('family', ['conditional', 'dab', 'dino'])
def test_layers_inside_a_turn_may_compute_their_activations_again(family, options):
    config = family_config(family, K)
    expected = step(in_turns(config, None))
    config['decoder'].update(options)
    assert_same(step(in_turns(config, 1)), expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile needs a C++ compiler')
def test_turns_of_compiled_layers():
    config = in_turns(detector_config(num_query_groups=K, dec_layers=1), 2)
    expected = step(config)
    config['decoder']['compile'] = True
    assert_same(step(config), expected, tol=1e-5)


def test_turns_under_autocast_with_a_scaled_loss_over_two_steps():
    """As mmengine's ``AmpOptimWrapper`` does it, with gradients that accumulate."""

    def train(groups_at_once):
        model = build(in_turns(detector_config(num_query_groups=K), groups_at_once))
        for seed in range(2):
            with torch.autocast('cpu', torch.bfloat16):
                losses = model.loss(*make_batch(seed=seed))
            assert all(loss.dtype == torch.float32 for loss in losses.values())
            (1024 * sum(losses.values())).backward()
        grads = {n: p.grad / 1024 for n, p in model.named_parameters() if p.grad is not None}
        return losses, grads

    assert_same(train(1), train(None), tol=2e-2)


@pytest.mark.parametrize('value', [0, -1, K + 1, 'one', True, 1.])
def test_a_number_of_groups_that_cannot_be_is_refused(value):
    with pytest.raises(ConfigError, match=f'groups_at_once={value!r} must .* from 1 to .*=3, or'):
        build(in_turns(detector_config(num_query_groups=K), value))


@pytest.mark.parametrize('key', ['separate_self_attn', 'train_cfg.assigner.type',
                                 'bbox_head.type'])
def test_groups_that_need_each_other_cannot_take_turns(key):
    config = in_turns(detector_config(num_query_groups=K), 1)
    if key == 'separate_self_attn':
        config['separate_self_attn'] = False
    elif key == 'bbox_head.type':
        config['bbox_head']['type'] = 'ConditionalDETRHead'
    else:
        config['train_cfg']['assigner']['type'] = 'OneToManyHungarianAssigner'
    with pytest.raises(ConfigError, match=f'groups_at_once=1 .* model.{key}=.* leave groups_at'):
        build(config)


def test_all_groups_in_one_turn_are_computed_once():
    assert build(in_turns(detector_config(num_query_groups=K), K)).groups_at_once is None
