"""20 optimizer steps of each family equal the steps of K stock detectors with shared weights.

The stock detectors have the rows of one group each, and their losses and gradients are averaged.
In float64, where the order of the sums does not matter.
"""
from typing import Dict, List, Tuple

import pytest
import torch
from builders import build, perturbed
from family_builders import ALL, FAMILIES, batch_of, config_of
from mask_builders import same_points
from torch import Tensor, nn
from torch.func import functional_call

from parity import golden

K = 3
Losses = Dict[str, Tensor]


def double_batch(family: str, seed: int) -> tuple:
    """Two images in float64, drawn outside of ``golden.float64``."""
    seed = 0 if family == 'mask2former' else seed  # other seeds: points of masks tie
    inputs, samples = batch_of(family, seed=seed)
    for sample in samples:
        sample.gt_instances.bboxes = sample.gt_instances.bboxes.double()
    return inputs.double(), samples


class StockDetectors:
    """K stock detectors: one set of shared weights, and the rows of each group."""

    def __init__(self, stock: nn.Module, group_model: nn.Module) -> None:
        self.stock = stock
        states = [group_model.stock_state_dict(group) for group in range(K)]
        trained = {name for name, x in group_model.named_parameters() if x.requires_grad}
        own = {name for name, _ in group_model.group_parameters()}
        fixed = {name: x.clone() for name, x in group_model.named_buffers()}
        fixed.update((name, x.detach().clone()) for name, x in group_model.named_parameters()
                     if not x.requires_grad)
        self.shared = leaves(states[0], trained - own)
        self.rows = [leaves(state, own) for state in states]
        self.states = [{**fixed, **self.shared, **rows} for rows in self.rows]

    def losses(self, inputs: Tensor, samples: list) -> Losses:
        found = [functional_call(self.stock, state, (inputs, samples), dict(mode='loss'))
                 for state in self.states]
        return {name: sum(losses[name] for losses in found) / K for name in found[0]}

    def parameters(self) -> List[Tensor]:
        return [*self.shared.values(), *(x for rows in self.rows for x in rows.values())]

    def joined(self, name: str) -> Tuple[Tensor, Tensor]:
        """A weight as the group detector has it, and its gradient."""
        of_all = [self.shared[name]] if name in self.shared else [x[name] for x in self.rows]
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in of_all]
        return torch.cat([x.detach() for x in of_all]), torch.cat(grads)


def leaves(state: Losses, names: set) -> Losses:
    return {name: state[name].clone().requires_grad_() for name in sorted(names)}


def take_step(losses: Losses, optimizer: torch.optim.Optimizer, parameters: List[Tensor]) -> None:
    optimizer.zero_grad()
    sum(x.sum() for x in losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(parameters, .1)
    optimizer.step()


def assert_same(found: Tensor, expected: Tensor, name: str) -> None:
    scale = 1e-9 * (1 + expected.abs().max().item())
    torch.testing.assert_close(found, expected, atol=scale, rtol=0, msg=name)


@pytest.mark.parametrize('family, groups_at_once, steps', [
    *((family, None, 20) for family in ALL),
    *((family, 1, 2) for family in FAMILIES)])
def test_steps_are_those_of_k_stock_detectors(family, groups_at_once, steps, monkeypatch):
    config = config_of(family, K, paired=True)
    config.train_cfg.groups_at_once = groups_at_once
    model = perturbed(build(config)).double()
    stock = StockDetectors(build(config_of(family, None, paired=True)).double(), model)
    batches = [double_batch(family, seed) for seed in range(steps)]
    with golden.float64():
        monkeypatch.setattr(torch, 'rand', same_points())  # of masks
        parameters = [x for x in model.parameters() if x.requires_grad]
        options = dict(lr=1e-4, weight_decay=1e-4)
        optimizers = (torch.optim.AdamW(parameters, **options),
                      torch.optim.AdamW(stock.parameters(), **options))
        for seed, batch in enumerate(batches):
            torch.manual_seed(seed)  # of denoising queries
            losses = model(*batch, mode='loss')
            take_step(losses, optimizers[0], parameters)
            torch.manual_seed(seed)
            expected = stock.losses(*batch)
            take_step(expected, optimizers[1], stock.parameters())
            for name, loss in expected.items():
                assert_same(losses[name].detach().sum(), loss.detach().sum(),
                            f'step {seed}: {name}')
        for name, x in model.named_parameters():
            if x.grad is not None:
                weight, grad = stock.joined(name)
                assert_same(x.grad, grad, f'gradient of {name}')
                assert_same(x.detach(), weight, name)
