"""Group DETR for MMDetection."""
from . import compat

compat.apply()

from .ablation import OneToManyHungarianAssigner  # noqa: E402
from .assigner import GroupHungarianAssigner  # noqa: E402
from .backbones import DC5ResNet  # noqa: E402
from .datasets import CheckedCocoDataset, CheckedLoadImageFromFile  # noqa: E402
from .dab import GroupDABDETR, GroupDABDETRHead  # noqa: E402
from .deformable import GroupDeformableDETR, GroupDeformableDETRHead  # noqa: E402
from .detectors import GroupConditionalDETR, GroupQueries  # noqa: E402
from .dino import GroupDINO, GroupDINOHead  # noqa: E402
from .evaluation import GroupCocoMetric  # noqa: E402
from .head import GroupConditionalDETRHead  # noqa: E402
from .hooks import AtomicCheckpointHook  # noqa: E402
from .initializers import PyTorchDefaultInit  # noqa: E402
from .stability import MatchingStabilityHook  # noqa: E402
from .transformer import (  # noqa: E402
    GroupConditionalDetrTransformerDecoder, GroupConditionalDetrTransformerDecoderLayer)
from .version import __version__  # noqa: E402

__all__ = [
    'AtomicCheckpointHook', 'CheckedCocoDataset', 'CheckedLoadImageFromFile', 'DC5ResNet',
    'GroupCocoMetric', 'GroupConditionalDETR', 'GroupConditionalDETRHead',
    'GroupConditionalDetrTransformerDecoder',
    'GroupConditionalDetrTransformerDecoderLayer', 'GroupDABDETR', 'GroupDABDETRHead',
    'GroupDINO', 'GroupDINOHead', 'GroupDeformableDETR', 'GroupDeformableDETRHead',
    'GroupHungarianAssigner', 'GroupQueries', 'MatchingStabilityHook',
    'OneToManyHungarianAssigner', 'PyTorchDefaultInit', '__version__'
]
