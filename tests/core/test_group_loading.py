"""A checkpoint of another number of groups: no number is lost, and no two groups are equal."""
import itertools

import pytest
import torch
from builders import build
from family_builders import ALL, batch_of, config_of
from torch import nn

from groupdetr_mmdet.errors import ConfigError

K = 3


def make(family: str, num_query_groups=K, seed: int = 0, **changes) -> nn.Module:
    return build(dict(config_of(family, num_query_groups, paired=True), **changes), seed)


def load(family: str, source: nn.Module, num_query_groups: int = K, **changes) -> nn.Module:
    """A model that loads the weights of another model."""
    model = make(family, num_query_groups, seed=1, **changes)
    model.load_state_dict(source.state_dict())
    return model


def groups_of(model: nn.Module) -> dict:
    return {name: x.detach().chunk(model.num_query_groups)
            for name, x in model.group_parameters()}


def updates(family: str, model: nn.Module, steps: int = 3) -> dict:
    """What some steps add to the blocks of each group."""
    before = {name: x.detach().clone() for name, x in model.group_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sizes = [(64, 96)] * 2  # no padding: a proposal there has no gradient
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        losses = model.loss(*batch_of(family, sizes, seed=step))
        sum(x.sum() for x in losses.values()).backward()
        optimizer.step()
    return {name: (x.detach() - before[name]).chunk(model.num_query_groups)
            for name, x in model.group_parameters()}


def pairs(blocks):
    return itertools.combinations(blocks, 2)


@pytest.mark.parametrize('family', ALL)
def test_groups_of_a_stock_checkpoint_differ_before_and_after_training(family):
    """No model here has dropout, which would also make groups differ."""
    stock = make(family, None)
    model = load(family, stock)
    for name, (first, *others) in groups_of(model).items():
        assert torch.equal(first, stock.state_dict()[name]), name
        spread = first.std(correction=0).item()
        for other in others:
            difference = (other - first).std(correction=0).item()
            assert difference == pytest.approx(
                model.new_group_noise * spread, rel=.2 if first.numel() > 100 else 1)
    added = updates(family, model)
    for a, b in pairs(next(iter(added.values()))):
        assert (a - b).norm() > .005 * a.norm()
    assert all(not torch.equal(a, b) for name, blocks in groups_of(model).items()
               for a, b in pairs(blocks))
    tied = load(family, stock, new_group_noise=0)
    for group in range(K):
        alone = tied.stock_state_dict(group)
        assert all(torch.equal(alone[name], x) for name, x in stock.state_dict().items())
    if family not in ('dn', 'mask2former'):  # which draw numbers of their own
        for a, b in pairs(next(iter(updates(family, tied).values()))):
            assert (a - b).norm() < 1e-3 * a.norm(), 'only the noise makes groups differ'


@pytest.mark.parametrize('old, new', [(3, 2), (2, 5)])
@pytest.mark.parametrize('family', ALL)
def test_the_groups_of_a_file_stay_bit_for_bit(family, old, new):
    source = make(family, old)
    found, again = (groups_of(load(family, source, new)) for _ in range(2))
    for name, blocks in groups_of(source).items():
        assert all(map(torch.equal, found[name], blocks)), name
        assert all(map(torch.equal, found[name], again[name])), name
    assert all(not torch.equal(a, b) for a, b in pairs(next(iter(found.values()))))


@pytest.mark.parametrize('family', ['conditional', 'two_stage'])
def test_groups_of_constant_rows_differ_all_the_same(family):
    stock = make(family, None)
    with torch.no_grad():
        for module in load(family, stock, 1).group_modules:
            for parameter in stock.get_submodule(module).parameters():
                parameter.fill_(.1)
    first, *others = groups_of(load(family, stock)).values()
    assert all(not torch.equal(a, b) for a, b in pairs(first))
    assert all(torch.equal(a, b) for blocks in others for a, b in pairs(blocks))


@pytest.mark.parametrize('family', ['two_stage', 'dab'])
def test_the_metadata_says_the_groups_and_older_files_need_not(family, warnings_logged):
    source = make(family, 2)
    state_dict = source.state_dict()
    assert state_dict._metadata['']['num_query_groups'] == 2
    expected = load(family, source).state_dict()
    for missing in (['num_query_groups'], ['num_query_groups', 'num_queries']):
        old, model = source.state_dict(), make(family, seed=1)
        for key in missing:
            del old._metadata[''][key]
        model.load_state_dict(old)
        assert all(torch.equal(x, expected[name]) for name, x in model.state_dict().items())
    warned = 'the checkpoint has no num_queries' in ' '.join(warnings_logged())
    assert warned == (family == 'dab'), 'proposals have no query embedding'


@pytest.mark.parametrize('family', ['conditional', 'dino'])
def test_one_warning_names_the_tensors(family, warnings_logged):
    source = make(family, 1)
    for i, (noise, words) in enumerate(((.02, 'with noise of 0.02'), (0, 'with noise of 0 '))):
        model = load(family, source, new_group_noise=noise)
        load(family, model)
        load(family, model, 1)
        warning = warnings_logged()[i]
        assert words in warning and len(warnings_logged()) == i + 1
        assert all(name in warning for name, _ in model.group_parameters())


@pytest.mark.parametrize('family, changes', [
    ('dab', dict(num_queries=7)), ('conditional', dict(width=64)),
    ('mask2former', dict(num_queries=4)), ('dab', dict(num_queries=9, num_query_groups=2))])
def test_a_checkpoint_of_another_n_or_width_is_refused_with_both_shapes(family, changes):
    source, target = build(config_of(family, **changes)), build(config_of(family))
    shapes = [str(tuple(next(m.group_parameters())[1].shape)) for m in (source, target)]
    with pytest.raises(ConfigError) as error:
        target.load_state_dict(source.state_dict())
    assert all(shape in str(error.value) for shape in shapes)
