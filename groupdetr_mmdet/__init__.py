"""Group DETR for MMDetection."""
# ruff: noqa: E402, I001  the first import makes the next possible
from . import compat

compat.apply()

from .analysis.group_metrics import GroupCocoMetric
from .analysis.stability import MatchingStabilityHook
from .assigner import GroupHungarianAssigner, OneToManyHungarianAssigner
from .checkpoints import named  # noqa: F401  the scheme groupdetr://
from .checkpoints.exact import ExactResumeHook, ResumableBatchSampler, ResumableTrainLoop
from .checkpoints.loading import CheckedPretrainedInit, CheckedWeightsHook, OtherClassesHook
from .checkpoints.preemption import PreemptionHook
from .checkpoints.resume import AtomicCheckpointHook
from .conditional import (GroupConditionalDETR, GroupConditionalDETRHead,
                          GroupConditionalDetrTransformerDecoder,
                          GroupConditionalDetrTransformerDecoderLayer)
from .dab import (DABDeformableDETR, GroupDABDeformableDETR, GroupDABDeformableDETRHead,
                  GroupDABDETR, GroupDABDETRHead)
from .deformable import GroupDeformableDETR, GroupDeformableDETRHead
from .dino import GroupDINO, GroupDINOHead
from .dn_detr import GroupDNDETR, GroupDNDETRHead
from .group_queries import GroupQueries
from .losses import IABCELoss, MALoss
from .training.amp import BFloat16OptimWrapper
from .training.early_stopping import RisenEarlyStoppingHook
from .backbones import DC5ResNet, EndingMobileNetV2, PyTorchDefaultInit
from .data.coco import CheckedCocoDataset, CheckedCocoMetric
from .data.images import CheckedLoadImageFromFile
from .data.resize import DETRResize
from .data.run_checks import RunCheckHook
from .mask2former import GroupMask2Former, GroupMask2FormerHead

__version__ = '0.1.0'

__all__ = [
    'AtomicCheckpointHook', 'BFloat16OptimWrapper', 'CheckedCocoDataset', 'CheckedCocoMetric',
    'CheckedLoadImageFromFile', 'CheckedPretrainedInit', 'CheckedWeightsHook',
    'DABDeformableDETR', 'DC5ResNet', 'DETRResize', 'EndingMobileNetV2', 'ExactResumeHook',
    'GroupCocoMetric', 'GroupConditionalDETR', 'GroupConditionalDETRHead',
    'GroupConditionalDetrTransformerDecoder', 'GroupConditionalDetrTransformerDecoderLayer',
    'GroupDABDETR', 'GroupDABDETRHead', 'GroupDABDeformableDETR', 'GroupDABDeformableDETRHead',
    'GroupDINO', 'GroupDINOHead', 'GroupDNDETR', 'GroupDNDETRHead', 'GroupDeformableDETR',
    'GroupDeformableDETRHead', 'GroupHungarianAssigner', 'GroupMask2Former',
    'GroupMask2FormerHead', 'GroupQueries', 'IABCELoss', 'MALoss', 'MatchingStabilityHook',
    'OneToManyHungarianAssigner', 'OtherClassesHook', 'PreemptionHook', 'PyTorchDefaultInit',
    'ResumableBatchSampler', 'ResumableTrainLoop', 'RisenEarlyStoppingHook', 'RunCheckHook',
    '__version__'
]
