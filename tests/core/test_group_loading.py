"""A checkpoint of another number of groups: no number is lost, and no two groups are equal."""
import re

import pytest
import torch
from builders import build, make_batch
from family_builders import FAMILIES, ONE_WIDTH, family_config
from mmengine.logging import MMLogger
from torch import nn

from groupdetr_mmdet.errors import ConfigError

K = 3


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def make(family: str, num_query_groups=K, seed: int = 0, **kwargs) -> nn.Module:
    width = ONE_WIDTH.get(family, 32) if num_query_groups is None else kwargs.pop('width', 32)
    config = family_config(family, num_query_groups, width=width)
    return build(dict(config, **kwargs), seed)


def load(family: str, source: nn.Module, num_query_groups: int = K, **kwargs) -> nn.Module:
    """A model of other weights, which then gets those of another one."""
    model = make(family, num_query_groups, seed=1, width=source.embed_dims, **kwargs)
    model.load_state_dict(source.state_dict())
    return model


def groups_of(model: nn.Module) -> dict:
    return {name: x.detach().chunk(model.num_query_groups)
            for name, x in model.group_parameters()}


def updates(model: nn.Module, steps: int = 3) -> dict:
    """What some steps add to the blocks of each group."""
    before = {name: x.detach().clone() for name, x in model.group_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sizes = [(64, 96)] * 2  # no padding: a proposal there has no gradient
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        sum(x.sum() for x in model.loss(*make_batch(sizes, seed=step)).values()).backward()
        optimizer.step()
    return {name: (x.detach() - before[name]).chunk(model.num_query_groups)
            for name, x in model.group_parameters()}


def pairs(blocks):
    return [(a, b) for i, a in enumerate(blocks) for b in blocks[:i]]


def test_groups_of_a_stock_checkpoint_differ_before_and_after_training(family):
    """No model here has dropout, which would also tell groups apart."""
    stock = make(family, None)
    model = load(family, stock)
    for name, (first, *others) in groups_of(model).items():
        assert torch.equal(first, stock.state_dict()[name]), name
        spread = first.std(correction=0).item()
        for other in others:
            difference = (other - first).std(correction=0).item()
            assert difference == pytest.approx(
                model.new_group_noise * spread, rel=.2 if first.numel() > 100 else 1)
    added = updates(model)
    for a, b in pairs(next(iter(added.values()))):
        assert (a - b).norm() > .005 * a.norm()
    assert all(not torch.equal(a, b) for name, blocks in groups_of(model).items()
               for a, b in pairs(blocks))
    tied = updates(load(family, stock, new_group_noise=0))
    for a, b in pairs(next(iter(tied.values()))) if family != 'dn' else ():  # has noise of its own
        assert (a - b).norm() < 1e-3 * a.norm(), 'the noise is what tells them apart'


@pytest.mark.parametrize('old, new', [(3, 3), (3, 2), (2, 5), (1, 2)])
def test_the_groups_of_a_file_stay_bit_for_bit(family, old, new):
    source = make(family, old)
    found, again = (groups_of(load(family, source, new)) for _ in range(2))
    for name, blocks in groups_of(source).items():
        for mine, theirs in zip(found[name], blocks):
            assert torch.equal(mine, theirs), name
        assert all(torch.equal(a, b) for a, b in zip(found[name], again[name])), name
    first = next(iter(found.values()))
    assert all(not torch.equal(a, b) for a, b in pairs(first))


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
def test_the_metadata_says_the_groups_and_older_files_need_not(family):
    source = make(family, 2)
    state_dict = source.state_dict()
    assert state_dict._metadata['']['num_query_groups'] == 2
    results = [load(family, source)]
    for missing in (['num_query_groups'], ['num_query_groups', 'num_queries']):
        old = source.state_dict()
        for key in missing:
            del old._metadata[''][key]
        results.append(make(family, seed=1))
        results[-1].load_state_dict(old)
    for other in results[1:]:
        for name, x in results[0].state_dict().items():
            assert torch.equal(other.state_dict()[name], x), name


@pytest.mark.parametrize('family', ['conditional', 'dino'])
def test_one_warning_names_the_tensors(family, caplog):
    source = make(family, 1)
    logger = MMLogger.get_current_instance()
    for noise, words in ((.02, 'with noise of 0.02'), (0, 'with noise of 0 ')):
        logger.addHandler(caplog.handler)
        model = load(family, source, new_group_noise=noise)
        load(family, model)
        load(family, model, 1)
        logger.removeHandler(caplog.handler)
        record, = (x for x in caplog.records if x.levelname == 'WARNING')
        assert words in record.message
        assert all(name in record.message for name, _ in model.group_parameters())
        caplog.clear()


@pytest.mark.parametrize('noise', [-1, 'abc', None, True, float('nan'), float('inf')])
def test_a_noise_that_is_no_number_is_refused(noise):
    with pytest.raises(ConfigError, match=f'new_group_noise={re.escape(repr(noise))} must be'):
        make('dab', new_group_noise=noise)
