"""Mixed precision on a CPU."""
import contextlib
from typing import Iterator

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """``OptimWrapper`` with autocast to bfloat16 on the CPU.

    mmengine's ``AmpOptimWrapper`` requires a GPU. bfloat16 has the range of float32, so losses are
    not scaled. Weights, gradients, losses and boxes stay in float32.
    """

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass under autocast."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
