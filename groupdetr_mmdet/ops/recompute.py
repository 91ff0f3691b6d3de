"""What a decoder's layers do at run time: recompute activations, and compile."""
import functools

from mmengine.logging import print_log
from torch import nn
from torch.utils.checkpoint import checkpoint

LAYER_OPTIONS = ('num_cp', 'compile')  # of model.decoder, which the decoders of mmdet do not have


def set_layer_options(decoder: nn.Module, num_cp: int = -1, compile: bool = False) -> None:
    """Set what the layers of a decoder of mmdet do, in place; parameters and results stay.

    Args:
        decoder (nn.Module): The decoder.
        num_cp (int): Layers, from the first, whose activations the backward pass recomputes,
            which trades time for memory, as ``num_cp`` of mmdet's encoders. -1 and 0: none.
        compile (bool): Whether ``torch.compile`` compiles the layers, once for all image sizes.
    """
    if num_cp > 0 or compile:
        print_log(f'model.decoder: num_cp={num_cp}, compile={compile}', logger='current')
    for layer in decoder.layers[:max(0, num_cp)]:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    for layer in decoder.layers if compile else ():
        layer.compile(dynamic=True)
