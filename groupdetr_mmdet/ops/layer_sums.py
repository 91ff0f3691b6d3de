"""Sums over the logits of each layer, with little memory and few passes over it."""
from typing import Any, Callable, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class LayerSums(torch.autograd.Function):
    """Compute a scalar of each layer, and in the forward pass its gradient, too.

    What autograd keeps of a layer is gone before the next layer, and stays in the cache. Only the
    gradient is kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Call ``function(x, layer)`` for each ``x`` of ``logits``, shape (num_layers, ...).

        ``x`` and its gradient are float32: before a scaler multiplies them, the gradients of a
        loss are too small for float16. Returns the scalars, shape (num_layers, ).
        """
        needs_gradient, ctx.dtype = ctx.needs_input_grad[0], logits.dtype
        sums, grad = [], None
        for layer, x in enumerate(logits):
            with torch.set_grad_enabled(needs_gradient):
                x = x.detach().float().requires_grad_(needs_gradient)
                sums.append(function(x, layer))
            if needs_gradient:
                grad = x.new_empty(logits.shape) if grad is None else grad
                grad[layer], = torch.autograd.grad(sums[-1], x)
        ctx.save_for_backward(grad)
        return torch.stack([x.detach() for x in sums])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor) -> Tuple[Tensor, None]:
        """Scale the gradient of each layer."""
        grad, = ctx.saved_tensors
        return (grad * grad_sums.view(-1, *[1] * (grad.dim() - 1))).to(ctx.dtype), None
