"""Options of decoder layers: activation checkpointing and ``torch.compile``."""
import functools

from mmengine.logging import print_log
from torch import nn
from torch.utils.checkpoint import checkpoint

LAYER_OPTIONS = ('num_cp', 'compile')  # keys of model.decoder that mmdet's decoders lack


def set_layer_options(decoder: nn.Module, num_cp: int = -1, compile: bool = False) -> None:
    """Set options of a decoder's layers, in place; parameters and results stay the same.

    Args:
        decoder (nn.Module): The decoder.
        num_cp (int): Number of layers, from the first, under activation checkpointing, as
            ``num_cp`` of mmdet's encoders. -1 and 0: none.
        compile (bool): Whether ``torch.compile`` compiles the layers, once for all image sizes.
    """
    if num_cp > 0 or compile:
        print_log(f'model.decoder: num_cp={num_cp}, compile={compile}', logger='current')
    for layer in decoder.layers[:max(0, num_cp)]:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    for layer in decoder.layers if compile else ():
        layer.compile(dynamic=True)
