"""Initializations that mmengine has no name for."""
from mmengine.model import BaseInit, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn


@WEIGHT_INITIALIZERS.register_module()
class PyTorchDefaultInit(BaseInit):
    """Initialize layers as PyTorch makes them, biases too: the official DETRs leave some so.

    Args:
        layer (str | list[str]): Class names of the layers.
    """

    def __call__(self, module: nn.Module) -> None:
        """Initialize the layers in a module."""
        for layer in module.modules():
            if type(layer).__name__ in self.layer:
                layer.reset_parameters()
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f"{type(self).__name__}: PyTorch's own")
