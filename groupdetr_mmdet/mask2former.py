"""Mask2Former with groups of queries: instance and panoptic segmentation."""
from operator import attrgetter
from typing import Iterator, List, Optional, Sequence, Tuple

from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.models.detectors import Mask2Former
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, InstanceList
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from .errors import ConfigError
from .group_detector import DecodedGroups, GroupDetector, without_numbers
from .groups import decoding


@MODELS.register_module()
class GroupMask2FormerHead(DecodedGroups, Mask2FormerHead):
    """``Mask2FormerHead`` with K groups of queries.

    Each group is matched one-to-one with the ground truth, at the same points of the masks. The
    stock head's losses are means over all matched queries, and so the means over the groups.

    The detector sets ``num_query_groups`` (K) and ``group_size`` (N) after it has built the head.
    """

    def forward(self, x: List[Tensor],
                batch_data_samples: SampleList) -> Tuple[List[Tensor], List[Tensor]]:
        """Predict classes and masks of the chosen groups; see the stock head."""
        with decoding(self.decoded_groups):
            return super().forward(x, batch_data_samples)

    def preprocess_gt(self, batch_gt_instances: InstanceList,
                      batch_gt_semantic_segs: List[Optional[PixelData]]) -> InstanceList:
        """Prepare the ground truth as the stock head, with masks of one byte a pixel.

        The stock head's int64 masks take eight, and each of the K matched queries gets a copy.
        """
        gts = super().preprocess_gt(batch_gt_instances, batch_gt_semantic_segs)
        return [InstanceData(labels=x.labels, masks=x.masks.bool()) for x in gts]

    def get_targets(self, cls_scores: List[Tensor], mask_preds: List[Tensor],
                    gts: InstanceList, *args) -> tuple:
        """Make the targets as the stock head, and the normalizer of K runs.

        The stock head counts matched queries, and 1 for an image without objects; here K.
        """
        *targets, num_matched = super().get_targets(cls_scores, mask_preds, gts, *args)
        num_groups = len(cls_scores[0]) // self.group_size
        return *targets, num_matched + sum(not len(x) for x in gts) * (num_groups - 1)

    def _get_targets_single(self, cls_score: Tensor, *args) -> tuple:
        self.num_queries = len(cls_score)  # the stock head makes this many labels
        return super()._get_targets_single(cls_score, *args)


@MODELS.register_module()
class GroupMask2Former(GroupDetector, Mask2Former):
    """Mask2Former trained with groups of queries.

    A checkpoint differs from a checkpoint of ``Mask2Former`` only in the rows of
    ``panoptic_head.query_feat.weight`` and ``panoptic_head.query_embed.weight``, K * N instead of
    N.

    Args:
        num_query_groups (int): Groups in training, K. Defaults to 11, as in the paper.
        panoptic_head (dict): Config of the head; ``num_queries`` is the queries of one group, N.
        kwargs: As for ``Mask2Former``; ``test_cfg`` and ``new_group_noise`` as for
            :class:`GroupQueries`. ``test_cfg.each_group`` requires ``instance_on``.

    Raises:
        ConfigError: As :class:`GroupQueries`; if ``each_group`` is set without ``instance_on``;
            or if ``train_cfg.groups_at_once`` is set: the masks of all groups are supervised
            together, and would take the memory that turns save.
    """
    head_class = GroupMask2FormerHead
    query_parameter = 'panoptic_head.query_feat.weight'
    group_modules = ['panoptic_head.query_feat', 'panoptic_head.query_embed']

    # Names of head and decoder in other detectors
    bbox_head = property(attrgetter('panoptic_head'))
    decoder = property(attrgetter('panoptic_head.transformer_decoder'))

    def __init__(self, *, num_query_groups: int = 11, panoptic_head: ConfigType, **kwargs) -> None:
        self.num_queries = panoptic_head.get('num_queries', 100)
        said_here = dict(num_query_groups=num_query_groups)
        panoptic_head = without_numbers(panoptic_head, 'panoptic_head', said_here)
        super().__init__(panoptic_head=panoptic_head, **said_here, **kwargs)
        self.panoptic_head.num_query_groups = num_query_groups
        self.panoptic_head.group_size = self.num_queries
        self._limit_detections('max_per_image', self.num_classes)
        self.panoptic_fusion_head.test_cfg = self.test_cfg
        if self.groups_at_once is not None:
            raise ConfigError(
                f'model.train_cfg.groups_at_once={self.groups_at_once} is for detectors of boxes; '
                'GroupMask2Former supervises the masks of all groups together: leave it out, and '
                'lower model.num_query_groups to save memory.')
        if self.test_cfg.get('each_group') and not self.test_cfg.get('instance_on'):
            raise ConfigError('model.test_cfg.each_group requires instances of each group: set '
                              'model.test_cfg.instance_on=True, or leave each_group out.')

    def predict_groups(self, batch_inputs: Tensor, batch_data_samples: SampleList,
                       rescale: bool) -> Iterator[Sequence[InstanceData]]:
        """Segment with one group after the other; see :meth:`GroupQueries.predict_groups`."""
        features, found = self.extract_feat(batch_inputs), []
        for group in range(self.num_query_groups):
            with decoding(range(group, group + 1)):
                masks = self.panoptic_head.predict(features, batch_data_samples)
            results = self.panoptic_fusion_head.predict(
                *masks, batch_data_samples, rescale=rescale)
            if group == self.test_cfg['query_group']:
                self.add_pred_to_datasample(batch_data_samples, results)
            found.append([x['ins_results'] for x in results])
        return zip(*found)
