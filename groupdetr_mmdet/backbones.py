"""Backbones that mmdet does not have, and an initializer."""
from typing import Dict

from mmdet.models.backbones import MobileNetV2, ResNet
from mmdet.registry import MODELS
from mmengine.model import BaseInit, Sequential, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn


@MODELS.register_module()
class DC5ResNet(ResNet):
    """ResNet whose last stage is dilated instead of strided, as in torchvision.

    With torchvision's ``replace_stride_with_dilation``, and so in the official DETRs, the first
    block of a dilated stage is not dilated; mmdet dilates all blocks. Arguments as for
    ``ResNet``, of depth 50 or more, without ``strides`` and ``dilations``.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), **kwargs)

    def make_res_layer(self, **kwargs) -> Sequential:
        """Make a stage whose first 3 x 3 convolution is not dilated."""
        layer = super().make_res_layer(**kwargs)
        layer[0].conv2.dilation = layer[0].conv2.padding = (1, 1)
        return layer


@MODELS.register_module()
class EndingMobileNetV2(MobileNetV2):
    """MobileNetV2 that ends with the last layer of ``out_indices``.

    With mmdet's, distributed training hangs: the layers after the last output get no gradient,
    and stages are frozen only after the model is distributed.

    Args:
        kwargs: As for ``MobileNetV2``.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        end = max(self.out_indices) + 1
        self.layers, self.left_out = self.layers[:end], self.layers[end:]
        for name in self.left_out:
            delattr(self, name)
        self._freeze_stages()  # train() is called after the model is distributed

    def _load_from_state_dict(self, state_dict: Dict[str, Tensor], prefix: str, *args) -> None:
        behind = tuple(f'{prefix}{name}.' for name in self.left_out)
        for name in [name for name in state_dict if name.startswith(behind)]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)


@WEIGHT_INITIALIZERS.register_module()
class PyTorchDefaultInit(BaseInit):
    """Initialize layers, biases included, by PyTorch's defaults, as in the official DETRs.

    Args:
        layer (str | list[str]): Class names of the layers.
    """

    def __call__(self, module: nn.Module) -> None:
        """Initialize the layers inside a module, in place."""
        for layer in module.modules():
            if type(layer).__name__ in self.layer:
                layer.reset_parameters()
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f"{type(self).__name__}: PyTorch's own")
