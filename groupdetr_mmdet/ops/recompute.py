"""Activations that the backward pass computes again, in the place of keeping them."""
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class RecomputedLayer:
    """Mixin of a decoder layer whose activations the backward pass computes again."""

    def forward(self, *args, **kwargs) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)


def recompute_layers(decoder: nn.Module, num_cp: int) -> None:
    """Trade time for memory in the first layers of a decoder, as ``num_cp`` of mmdet's encoders.

    Args:
        decoder (nn.Module): A decoder of mmdet, changed in place; parameters and results stay.
        num_cp (int): Number of layers; -1 and 0 are none.
    """
    for layer in decoder.layers[:max(0, num_cp)]:
        kind = type(layer)
        layer.__class__ = type(f'Recomputed{kind.__name__}', (RecomputedLayer, kind), {})
