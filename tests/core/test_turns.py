"""Groups in turns learn what all groups learn at once."""
import contextlib
from typing import Dict, Optional, Tuple

import pytest
import torch
import torch.utils.checkpoint
from builders import build, detector_config, make_batch
from family_builders import FAMILIES, family_config
from torch import Tensor

from groupdetr_mmdet import turns
from groupdetr_mmdet.errors import ConfigError

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
        losses = {name: sum(x) if isinstance(x, (list, tuple)) else x.sum()
                  for name, x in losses.items()}
        sum(losses.values()).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, grads


def assert_same(found: Tuple[dict, dict], expected: Tuple[dict, dict], tol: float = 1e-6) -> None:
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for name, value in b.items():
            scale = 1 + value.abs().max().item()
            torch.testing.assert_close(a[name], value, atol=tol * scale, rtol=0, msg=name)


@pytest.mark.parametrize('groups_at_once, num_gts', [(2, (3, 2)), (1, (0, 0))])
@pytest.mark.parametrize('family', FAMILIES)
def test_turns_learn_what_all_groups_learn_at_once(family, groups_at_once, num_gts):
    """With a last turn of fewer groups, and with images that have no object."""
    config = family_config(family, K)
    expected = step(in_turns(config, None), num_gts)
    assert_same(step(in_turns(config, groups_at_once), num_gts), expected)


@pytest.mark.parametrize('part, type_', [
    ('bbox_head', 'ConditionalDETRHead'), ('assigner', 'OneToManyHungarianAssigner')])
def test_a_stock_head_and_one_to_many_matching_learn_the_same_in_turns(part, type_):
    config = detector_config(num_query_groups=K)
    (config if part == 'bbox_head' else config['train_cfg'])[part]['type'] = type_
    expected = step(in_turns(config, None))
    assert_same(step(in_turns(config, 1)), expected)


@contextlib.contextmanager
def without_recomputation():
    original = turns.checkpoint
    turns.checkpoint = lambda function, *args, **_: function(*args)
    try:
        yield
    finally:
        turns.checkpoint = original


@pytest.mark.parametrize('family', ['conditional', 'dab', 'two_stage', 'dino', 'dn'])
def test_the_recomputation_draws_the_numbers_of_the_forward_pass(family):
    """Of dropout and of denoising queries, shown by turns whose activations are all kept."""
    config = in_turns(family_config(family, K), 1, dropout=.3)
    kept = step(config, prepare=without_recomputation)
    assert_same(step(config), kept)
    with pytest.raises(AssertionError):  # the numbers matter
        assert_same(step(config, seed=2), kept)
    config['decoder']['num_cp'] = 1
    assert_same(step(config), kept)


def test_few_rows_are_decoded_at_a_time_and_all_are_supervised_once():
    model = build(in_turns(detector_config(num_queries=10, num_query_groups=K), 2))
    rows, supervised, compute = [], [], model.bbox_head.loss_by_feat
    model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs['query'].size(1)), with_kwargs=True)
    model.bbox_head.loss_by_feat = lambda **kwargs: (
        supervised.append(kwargs['all_layers_cls_scores'].size(2)) or compute(**kwargs))
    losses = model.loss(*make_batch())
    assert (rows, supervised) == ([20, 10], [30])
    sum(losses.values()).backward()
    assert (rows, supervised) == ([20, 10, 20], [30])
    assert len(list(model.decoded_groups)) == K


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


def test_groups_that_see_each_other_cannot_be_decoded_in_turns():
    config = in_turns(detector_config(num_query_groups=K), 1)
    config['separate_self_attn'] = False
    with pytest.raises(ConfigError, match='groups_at_once=1 .*separate_self_attn=False'):
        build(config)


def test_all_groups_in_one_turn_are_decoded_at_once():
    assert build(in_turns(detector_config(num_query_groups=K), K)).groups_at_once is None
