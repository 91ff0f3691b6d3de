"""Kernels of the extra gpu: used where they run, left where they fail, equal to the plain way."""
import importlib.util

import pytest
import torch
from builders import MATCH_COSTS
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

from groupdetr_mmdet import assigner as assigner_module
from groupdetr_mmdet.ops import kernels
from groupdetr_mmdet.ops.deformable import deformable_attention

META = dict(img_shape=(50, 70))


def needs(package: str):
    there = torch.cuda.is_available() and importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f'needs CUDA and {package}')


@pytest.mark.parametrize('load, result, said', [
    (lambda: abs, abs, 'Sums runs by torch.'),
    (lambda: 1 / 0, None, 'Sums: torch is installed and cannot run here (ZeroDivisionError')])
def test_what_runs_is_said_and_what_fails_is_left(monkeypatch, load, result, said):
    logged = []
    monkeypatch.setattr(kernels, 'print_log', lambda text, **kwargs: logged.append(text))
    assert kernels.load_kernel('no_such_package', 'Sums', load) is None and not logged
    assert kernels.load_kernel('torch', 'Sums', load) is result
    assert len(logged) == 1 and logged[0].startswith(said)


def solve_by_scipy(problems: torch.Tensor) -> torch.Tensor:
    """What ``batch_linear_assignment`` returns."""
    tasks = torch.full(problems.shape[:2], -1)
    for row, problem in zip(tasks, problems):
        workers, columns = map(torch.from_numpy, linear_sum_assignment(problem))
        row[workers] = columns
    return tasks


def match(device: str = 'cpu', num_gts=(3, 0, 9)):
    """Pairs of 2 layers, 3 images and 2 groups of 6 queries; the last image has more objects."""
    torch.manual_seed(0)
    assigner = TASK_UTILS.build(dict(
        type='GroupHungarianAssigner', match_costs=MATCH_COSTS, num_queries=6, _scope_='mmdet'))
    scores = torch.randn(2, 3, 12, 5, device=device)
    boxes = torch.rand(2, 3, 12, 4, device=device)
    gts = [InstanceData(labels=torch.randint(5, (n, ), device=device),
                        bboxes=torch.tensor([0., 0., 30., 20.], device=device) +
                        20 * torch.rand(n, 4, device=device)) for n in num_gts]
    return assigner.match_layers(scores, boxes, gts, [META] * 3, 5)


def test_pairs_solved_where_the_costs_are_equal_those_of_the_host(monkeypatch):
    expected = match()
    monkeypatch.setattr(assigner_module.GroupHungarianAssigner, 'solves_on_gpu',
                        lambda self, costs: True)
    solved = []
    monkeypatch.setattr(assigner_module, 'assignment_kernel', lambda: lambda problems: (
        solved.append(problems.shape) or solve_by_scipy(problems)))
    assert all(torch.equal(a, b) for a, b in zip(match(), expected))
    assert solved == [(4, 6, 3), (4, 6, 9)]


def test_nan_is_told_before_a_gpu_solves_it(monkeypatch):
    monkeypatch.setattr(assigner_module.GroupHungarianAssigner, 'solves_on_gpu',
                        lambda self, costs: True)
    monkeypatch.setattr(torch, 'rand', lambda *size, **kw: torch.full(size, float('nan')))
    with pytest.raises(FloatingPointError, match='NaN or infinite boxes in decoder layer 0'):
        match(num_gts=(0, 0, 0))


@needs('torch_linear_assignment')
def test_pairs_of_a_gpu_equal_those_of_the_host(monkeypatch):
    expected = match('cuda')
    monkeypatch.setattr(assigner_module, 'GPU_COSTS_FROM', 0)
    assert kernels.assignment_kernel() is not None
    assert all(torch.equal(a, b) for a, b in zip(match('cuda'), expected))


@needs('deformops')
def test_attention_of_deformops_equals_the_plain_one(monkeypatch):
    assert kernels.attention_kernel() is not None
    shapes = torch.tensor([[5, 7], [3, 4]], device='cuda')
    inputs = [torch.rand(size, device='cuda', requires_grad=True)
              for size in ((2, 47, 2, 16), (2, 9, 2, 2, 4, 2), (2, 9, 2, 2, 4))]

    def run():
        out = deformable_attention(inputs[0], shapes, *inputs[1:])
        return [out, *torch.autograd.grad(out.sin().sum(), inputs)]

    found = run()
    monkeypatch.setattr('groupdetr_mmdet.ops.deformable.attention_kernel', lambda: None)
    for a, b in zip(found, run()):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
