"""Kernels for a GPU that need no compiler: those of the extra ``gpu``, where it is installed.

Each is tried once on a small problem, so that what a GPU or a driver cannot run shows there, is
said in one sentence, and leaves the plain way in use.
"""
import functools
import importlib.util
import logging
from typing import Callable, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor


def load_kernel(package: str, purpose: str, load: Callable[[], Callable]) -> Optional[Callable]:
    """Load a kernel and say that it runs, or why not; None where its package is missing."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        kernel = load()
    except Exception as error:  # whatever a compiler, a driver or another version may raise
        print_log(f'{purpose}: {package} is installed and cannot run here '
                  f'({type(error).__name__}: {error}); PyTorch and SciPy compute it instead.',
                  logger='current', level=logging.WARNING)
        return None
    print_log(f'{purpose} runs by {package}.', logger='current')
    return kernel


@functools.cache
def attention_kernel() -> Optional[Callable]:
    """Deformable attention by ``deformops`` (Stolle, TMLR 2026), arguments as mmcv's."""
    return load_kernel('deformops', 'Deformable attention', load_deformops)


def load_deformops(device: str = 'cuda') -> Callable:
    """Import deformable attention of deformops, and try it once."""
    from deformops.registry import msda

    def attention(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        shapes = torch.as_tensor(shapes, device=value.device).long()
        sizes = shapes.prod(1)
        return msda(value, shapes, sizes.cumsum(0) - sizes, locations, weights.flatten(3))

    shapes = torch.tensor([[2, 3], [1, 2]], device=device)
    inputs = [torch.rand(size, device=device, requires_grad=True)
              for size in ((1, 8, 2, 8), (1, 3, 2, 2, 4, 2), (1, 3, 2, 2, 4))]
    attention(inputs[0], shapes, *inputs[1:]).sum().backward()
    return attention
