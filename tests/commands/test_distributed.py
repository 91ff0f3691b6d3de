"""Two processes that hold one image each learn what one process learns from both."""
import pytest
import torch
import torch.distributed as dist
from builders import build
from family_builders import batch_of, config_of
from mask_builders import same_points
from running import fork_ranks, free_port
from torch.nn.parallel import DistributedDataParallel

SIZES = ((64, 96), (64, 96))
EXACT = dict(label_noise_scale=0., box_noise_scale=0., group_cfg=dict(dynamic=False, num_groups=2))


@pytest.fixture(autouse=True)
def drawn_points(monkeypatch):
    monkeypatch.setattr(torch, 'rand', same_points())


def make(family, groups_at_once=None):
    config = config_of(family)
    config.train_cfg.groups_at_once = groups_at_once
    if family == 'dn':
        config.dn_cfg = EXACT
    return build(config)


def step(model, inputs, samples):
    losses = model(inputs, samples, mode='loss')
    sum(losses.values()).backward()
    return {name: value.detach() for name, value in losses.items()}


def train_rank(rank, port, family, num_gts, groups_at_once, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', f'tcp://127.0.0.1:{port}', world_size=2, rank=rank)
    model = DistributedDataParallel(make(family, groups_at_once))  # no find_unused_parameters
    inputs, samples = batch_of(family, SIZES, num_gts)
    torch.rand = same_points()  # this process has no other test
    losses = step(model, inputs[rank:rank + 1], samples[rank:rank + 1])
    grads = {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None}
    torch.save((losses, grads), f'{folder}/{rank}.pt')
    del model  # it must not outlive its processes' group
    dist.destroy_process_group()


@pytest.mark.parametrize('family, num_gts, groups_at_once', [
    ('conditional', (3, 0), None), ('conditional', (5, 1), 2), ('refine', (3, 0), None),
    ('two_stage', (5, 1), 1), ('dn', (2, 2), None), ('dab_deformable', (3, 0), None),
    ('mask2former', (2, 2), None)])
def test_two_processes_equal_one_on_the_joined_batch(family, num_gts, groups_at_once, tmp_path):
    fork_ranks(train_rank, free_port(), family, num_gts, groups_at_once, str(tmp_path))
    ranks = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    model = make(family)
    losses = step(model, *batch_of(family, SIZES, num_gts))
    for name, value in losses.items():
        mean = (ranks[0][0][name] + ranks[1][0][name]) / 2
        torch.testing.assert_close(mean, value, atol=1e-5, rtol=1e-5)
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    for _, found in ranks:
        assert found.keys() == grads.keys()
        for name, grad in grads.items():
            tolerance = 1e-4 * grad.abs().max().item() + 1e-6
            torch.testing.assert_close(found[name], grad, atol=tolerance, rtol=0, msg=name)
