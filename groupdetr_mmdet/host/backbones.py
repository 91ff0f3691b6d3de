"""Backbones that mmdet's options do not describe."""
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmengine.model import Sequential


@MODELS.register_module()
class DC5ResNet(ResNet):
    """ResNet whose last stage is dilated instead of strided, as torchvision dilates it.

    In torchvision's ``replace_stride_with_dilation``, and so in the official DETRs, the first
    block of a dilated stage keeps the dilation of the stage before it; mmdet dilates all.

    Args:
        kwargs: As for ``ResNet`` of depth 50 or more; ``strides`` and ``dilations`` are set.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), **kwargs)

    def make_res_layer(self, **kwargs) -> Sequential:
        """Make a stage; the first 3 x 3 convolution of a dilated one is not dilated."""
        layer = super().make_res_layer(**kwargs)
        layer[0].conv2.dilation = layer[0].conv2.padding = (1, 1)
        return layer
