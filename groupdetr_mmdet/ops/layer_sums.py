"""Sums over the logits of each layer, with little memory."""
from typing import Any, Callable, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class LayerSums(torch.autograd.Function):
    """Compute a scalar of each layer, and its gradient already in the forward pass.

    Autograd's intermediate tensors of a layer are freed before the next layer, and fit into the
    cache. The backward pass needs the gradient alone.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Return ``function(logits[layer], layer)`` of each layer, shape (num_layers, ).

        ``logits`` have shape (num_layers, ...). The computation is in float32, because gradients
        are too small for float16 before a loss scaler multiplies them.
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
