"""What a decoder's layers do at run time: compute activations again, and compile."""
import functools
from typing import NamedTuple

from mmengine.logging import print_log
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError


class LayerOptions(NamedTuple):
    """Options of ``model.decoder`` that the decoders of mmdet do not have.

    Attributes:
        num_cp (int): Layers, from the first, whose activations the backward pass computes again,
            which trades time for memory, as ``num_cp`` of mmdet's encoders. -1 and 0: none.
        compile (bool): Whether ``torch.compile`` compiles the layers, once for all image sizes.
    """
    num_cp: int = -1
    compile: bool = False

    def apply(self, decoder: nn.Module) -> None:
        """Apply the options to a decoder of mmdet, in place; parameters and results stay.

        Raises:
            ConfigError: If ``num_cp`` is no integer.
        """
        if not isinstance(self.num_cp, int) or isinstance(self.num_cp, bool):
            raise ConfigError(f'model.decoder.num_cp={self.num_cp!r} must be an integer: the '
                              'number of layers that compute their activations again, or -1.')
        if self != LayerOptions():
            print_log(f'model.decoder: {self}', logger='current')
        for layer in decoder.layers[:max(0, self.num_cp)]:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
        for layer in decoder.layers if self.compile else ():
            layer.compile(dynamic=True)
