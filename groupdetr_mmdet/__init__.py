"""Group DETR for MMDetection."""
from . import compat

compat.apply()

from .assigner import GroupHungarianAssigner  # noqa: E402
from .datasets import CheckedCocoDataset, CheckedLoadImageFromFile  # noqa: E402
from .detectors import GroupConditionalDETR, GroupQueries  # noqa: E402
from .head import GroupConditionalDETRHead  # noqa: E402
from .hooks import AtomicCheckpointHook  # noqa: E402
from .transformer import (  # noqa: E402
    GroupConditionalDetrTransformerDecoder, GroupConditionalDetrTransformerDecoderLayer)
from .version import __version__  # noqa: E402

__all__ = [
    'AtomicCheckpointHook', 'CheckedCocoDataset', 'CheckedLoadImageFromFile',
    'GroupConditionalDETR', 'GroupConditionalDETRHead', 'GroupConditionalDetrTransformerDecoder',
    'GroupConditionalDetrTransformerDecoderLayer', 'GroupHungarianAssigner', 'GroupQueries',
    '__version__'
]
