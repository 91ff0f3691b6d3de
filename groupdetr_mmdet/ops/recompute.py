"""What a decoder's layers do at run time: compute activations again, and compile."""
import functools
from typing import Callable, List, Optional, Tuple

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError

LAYER_OPTIONS = ('num_cp', 'compile')  # of model.decoder, which the decoders of mmdet do not have


def set_layer_options(decoder: nn.Module, num_cp: int = -1, compile: bool = False) -> None:
    """Set what the layers of a decoder of mmdet do, in place; parameters and results stay.

    Args:
        decoder (nn.Module): The decoder.
        num_cp (int): Layers, from the first, whose activations the backward pass computes again,
            which trades time for memory, as ``num_cp`` of mmdet's encoders. -1 and 0: none.
        compile (bool): Whether ``torch.compile`` compiles the layers, once for all image sizes.

    Raises:
        ConfigError: If ``num_cp`` is no integer.
    """
    if not isinstance(num_cp, int) or isinstance(num_cp, bool):
        raise ConfigError(f'model.decoder.num_cp={num_cp!r} must be an integer: the number of '
                          'layers that compute their activations again, or -1.')
    if num_cp > 0 or compile:
        print_log(f'model.decoder: num_cp={num_cp}, compile={compile}', logger='current')
    for layer in decoder.layers[:max(0, num_cp)]:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    for layer in decoder.layers if compile else ():
        layer.compile(dynamic=True)


def has_no_option(layer: nn.Module) -> bool:
    """Return whether a layer runs as it was written, without ``num_cp`` and ``compile``."""
    return 'forward' not in vars(layer) and layer._compiled_call_impl is None


class Pass:
    """A forward pass that keeps some outputs, or one that computes it again and takes them.

    It can be entered as often as there are backward passes.
    """
    current: Optional['Pass'] = None

    def __init__(self, outputs: List[Tensor], is_again: bool) -> None:
        self.outputs, self.is_again = outputs, is_again

    def __enter__(self) -> None:
        self.known = iter(self.outputs if self.is_again else ())
        Pass.current = self

    def __exit__(self, *_) -> None:
        Pass.current = None

    def get(self, compute: Callable[[Optional[Tensor]], Tensor]) -> Tensor:
        """See :func:`computed_once`."""
        known = next(self.known, None)
        output = compute(known)
        if known is None:
            self.outputs.append(output.detach())
        return output


def keep_outputs() -> Tuple[Pass, Pass]:
    """Let a ``torch.utils.checkpoint`` keep some outputs, as its ``context_fn``."""
    outputs: List[Tensor] = []
    return Pass(outputs, is_again=False), Pass(outputs, is_again=True)


def computed_once(compute: Callable[[Optional[Tensor]], Tensor]) -> Tensor:
    """Return ``compute(None)``, or ``compute(output)`` in a pass that is computed again.

    For an output that is small and slow to compute. The second call is given that of the first
    pass, and only has to prepare the backward pass.
    """
    return compute(None) if Pass.current is None else Pass.current.get(compute)
