"""Resize images as Hugging Face's transformers does."""
from typing import Sequence, Tuple

from mmdet.datasets.transforms import Resize
from mmdet.registry import TRANSFORMS


@TRANSFORMS.register_module()
class DETRResize(Resize):
    """``Resize``, to the sizes of the image processors of transformers.

    With ``keep_ratio=True`` these cut a fraction of the longer side, which ``Resize`` rounds: an
    image of 640 x 480 pixels in ``scale=(1333, 800)`` becomes 1066 x 800 instead of 1067 x 800.
    With ``backend='pillow'`` the pixels are equal, too.
    """

    def __init__(self, *args, keep_ratio: bool = False, **kwargs) -> None:
        super().__init__(*args, keep_ratio=False, **kwargs)
        self.fits = keep_ratio

    def _resize_img(self, results: dict) -> None:
        if self.fits:
            results['scale'] = fitted_size(results['img'].shape[1::-1], results['scale'])
        super()._resize_img(results)


def fitted_size(size: Sequence[int], scale: Sequence[int]) -> Tuple[int, ...]:
    """Return the size of an image in transformers.

    Args:
        size (Sequence[int]): Width and height of the image, or height and width.
        scale (Sequence[int]): The most pixels of the shorter and the longer side, in any order.

    Returns:
        tuple[int, int]: The new sides, in the order of ``size``.
    """
    shorter, longer = sorted(size)
    fitted: float = min(scale)  # of the shorter side
    if longer / shorter * fitted > max(scale):
        fitted = max(scale) * shorter / longer
    if round(fitted) == shorter:
        return tuple(size)
    sides = round(fitted), int(fitted * longer / shorter)
    return sides if size[0] <= size[1] else sides[::-1]
