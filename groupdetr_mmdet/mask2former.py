"""Mask2Former with groups of queries: instance and panoptic segmentation."""
import contextlib
import functools
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from mmdet.models.dense_heads import Mask2FormerHead, mask2former_head
from mmdet.models.detectors import Mask2Former
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, InstanceList, OptConfigType
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from .attention import group_self_attention
from .deformable import replaced_parameters
from .errors import ConfigError
from .group_detector import (DecodedGroups, GroupDetector, assigner_config, check_query_group,
                             label_groups, without_numbers)
from .groups import check_num_query_groups


@MODELS.register_module()
class GroupMask2FormerHead(DecodedGroups, Mask2FormerHead):
    """``Mask2FormerHead`` with K groups of queries.

    Each group is matched one-to-one with the ground truth, at the same points of the masks. The
    losses are those of the stock head over all matched queries, and so the mean over the groups.

    Args:
        num_queries (int): Queries of one group, N.
        num_query_groups (int): Groups in training, K, which the detector says.
        args, kwargs: As for ``Mask2FormerHead``, the assigner a ``GroupHungarianAssigner``.
    """

    def __init__(self, *args, num_queries: int = 100, num_query_groups: int = 1,
                 **kwargs) -> None:
        super().__init__(*args, num_queries=num_query_groups * num_queries, **kwargs)
        self.group_size = num_queries
        self.num_query_groups = num_query_groups
        group_self_attention(self.transformer_decoder, num_queries)
        if self.train_cfg:
            self.assigner.num_queries = num_queries

    def forward(self, x: List[Tensor],
                batch_data_samples: SampleList) -> Tuple[List[Tensor], List[Tensor]]:
        """Predict classes and masks by the groups that are decoded: all in training, or one.

        Args:
            x (list[Tensor]): Features of the levels, each of shape (bs, C, h, w).
            batch_data_samples (list[DetDataSample]): Each image's information.

        Returns:
            tuple[list[Tensor], list[Tensor]]: Of the queries and of each layer the logits, shape
            (bs, num_rows, num_classes + 1), and the logits of the masks, shape
            (bs, num_rows, h, w).
        """
        with replaced_parameters({embedding: dict(weight=embedding.weight[self.decoded_rows])
                                  for embedding in (self.query_feat, self.query_embed)}):
            return super().forward(x, batch_data_samples)

    def preprocess_gt(self, batch_gt_instances: InstanceList,
                      batch_gt_semantic_segs: List[Optional[PixelData]]) -> InstanceList:
        """Prepare the ground truth as the stock head does, its masks of one byte a pixel.

        The stock head's have eight, and each of the K matched queries gets a copy.
        """
        gts = super().preprocess_gt(batch_gt_instances, batch_gt_semantic_segs)
        return [InstanceData(labels=x.labels, masks=x.masks.bool()) for x in gts]

    def get_targets(self, cls_scores_list: List[Tensor], mask_preds_list: List[Tensor],
                    batch_gt_instances: InstanceList, *args) -> tuple:
        """Make the targets as the stock head does, with the normalizer of K runs.

        It counts matched queries, and an image that has no object as one: here as one a group,
        and in all turns.
        """
        *targets, num_matched = super().get_targets(
            cls_scores_list, mask_preds_list, batch_gt_instances, *args)
        num_empty = sum(not len(gts) for gts in batch_gt_instances)
        num_matched += num_empty * (len(self.decoded_groups) - 1)
        return *targets, self.turn.in_all_turns(num_matched)

    def _get_targets_single(self, cls_score: Tensor, *args) -> tuple:
        self.num_queries = len(cls_score)  # as many labels does the stock head make
        return super()._get_targets_single(cls_score, *args)

    def _loss_by_feat_single(self, *args) -> Tuple[Tensor, Tensor, Tensor]:
        """Supervise a layer; the normalizer is averaged over ranks once a step, see ``Turn``."""
        average = functools.partial(self.turn.once_a_step, mask2former_head.reduce_mean)
        with averaging_by(average):
            return super()._loss_by_feat_single(*args)


@contextlib.contextmanager
def averaging_by(average: Callable) -> Iterator[None]:
    """Let mmdet's head average over ranks by another function; it calls one of its module."""
    stock = mask2former_head.reduce_mean
    mask2former_head.reduce_mean = average
    try:
        yield
    finally:
        mask2former_head.reduce_mean = stock


@MODELS.register_module()
class GroupMask2Former(GroupDetector, Mask2Former):
    """Mask2Former trained with groups of queries.

    A checkpoint differs from one of ``Mask2Former`` in the rows of
    ``panoptic_head.query_feat.weight`` and ``panoptic_head.query_embed.weight``, K * N instead of
    N, and nowhere else.

    Args:
        num_query_groups (int): Groups in training, K. Defaults to 11, as in the paper.
        panoptic_head (dict): Config of the head, whose ``num_queries`` counts one group.
        train_cfg (dict, optional): As for the stock detector, its ``assigner`` a
            ``GroupHungarianAssigner`` without K. ``groups_at_once`` is that of
            :class:`GroupQueries`; here every turn runs the pixel decoder, too.
        test_cfg (dict, optional): As for the stock detector; ``query_group`` (0) and
            ``each_group`` are those of :class:`GroupQueries`.
        new_group_noise (float): As for :class:`GroupQueries`.
        kwargs: As for ``Mask2Former``.

    Raises:
        ConfigError: If K is below 1, another part says another K or N, the assigner knows no
            groups, or ``query_group`` is none of the K.
    """
    query_parameter = 'panoptic_head.query_feat.weight'
    group_modules = ['panoptic_head.query_feat', 'panoptic_head.query_embed']

    def __init__(self, *, num_query_groups: int = 11, panoptic_head: ConfigType,
                 train_cfg: OptConfigType = None, test_cfg: OptConfigType = None,
                 new_group_noise: float = .02, **kwargs) -> None:
        self.num_query_groups = check_num_query_groups(num_query_groups)
        self.num_queries = panoptic_head.get('num_queries', 100)
        numbers = dict(num_query_groups=num_query_groups)
        panoptic_head = dict(without_numbers(panoptic_head, 'panoptic_head', numbers), **numbers)
        if train_cfg is not None:
            assigner = assigner_config(
                train_cfg.get('assigner'), dict(numbers, num_queries=self.num_queries))
            train_cfg = dict(train_cfg, assigner=assigner)
        test_cfg = dict(dict(query_group=0), **(test_cfg or {}))
        kept = check_query_group(test_cfg['query_group'], num_query_groups)
        parts = dict(kwargs, panoptic_head=panoptic_head, train_cfg=train_cfg, test_cfg=test_cfg)
        super().__init__(new_group_noise=new_group_noise, **{
            name: ConfigDict(x) if isinstance(x, dict) else x for name, x in parts.items()})
        most = kept * self.num_queries * self.num_classes
        self.test_cfg['max_per_image'] = min(most, self.test_cfg.get('max_per_image', 100))
        # The parts have copies, and the head follows query_group.
        self.panoptic_head.test_cfg = self.panoptic_fusion_head.test_cfg = self.test_cfg

    @property
    def bbox_head(self) -> GroupMask2FormerHead:
        """The head, under the name that it has in other detectors."""
        return self.panoptic_head

    @property
    def decoder(self) -> nn.Module:
        """The decoder of the queries, under the name that it has in other detectors."""
        return self.panoptic_head.transformer_decoder

    def prepare_turns(self, batch_inputs: Tensor,
                      batch_data_samples: SampleList) -> Tuple[Callable, ...]:
        """Compute the features of the levels; see :meth:`GroupQueries.prepare_turns`."""

        def compute_losses(*features: Tensor) -> Dict[str, Tensor]:
            losses = self.panoptic_head.loss(features, batch_data_samples)
            # The mean over the rows of this turn; those of masks are the turn's part of a sum.
            share = len(self.decoded_groups) / self.num_query_groups
            return {name: share * loss if name.endswith('loss_cls') else loss
                    for name, loss in losses.items()}

        return compute_losses, *self.extract_feat(batch_inputs)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList,
                rescale: bool = True) -> SampleList:
        """Segment by one group, and with ``test_cfg.each_group`` by one group after the other.

        Args:
            batch_inputs (Tensor): Images, shape (bs, 3, H, W).
            batch_data_samples (list[DetDataSample]): Each image's information.
            rescale (bool): Whether results are in pixels of the original image. Defaults to True.

        Returns:
            list[DetDataSample]: As of the stock detector. With ``each_group``, also
            ``group_instances`` of all groups, whose ``query_groups`` is the group of each, and
            ``query_group`` in the meta information.

        Raises:
            ConfigError: If each group is asked for its instances, and instances are off.
        """
        if not self.test_cfg.get('each_group'):
            return super().predict(batch_inputs, batch_data_samples, rescale)
        if not self.test_cfg.get('instance_on', False):
            raise ConfigError('model.test_cfg.each_group wants the instances of each group: set '
                              'model.test_cfg.instance_on=True, or leave each_group out.')
        features = self.extract_feat(batch_inputs)
        results = [list(self.predict_group(group, features, batch_data_samples, rescale))
                   for group in range(self.num_query_groups)]
        kept = self.test_cfg['query_group']
        samples = self.add_pred_to_datasample(batch_data_samples, results[kept])
        for sample, groups in zip(samples, zip(*results)):
            sample.group_instances = label_groups([x['ins_results'] for x in groups])
            sample.set_metainfo(dict(query_group=kept))
        return samples

    def predict_group(self, group: int, features: Tuple[Tensor], samples: SampleList,
                      rescale: bool) -> Iterable[dict]:
        """Segment by one group; the results are those of ``MaskFormerFusionHead``."""
        with self.using_groups(group):
            logits, masks = self.panoptic_head.predict(features, samples)
        return self.panoptic_fusion_head.predict(logits, masks, samples, rescale=rescale)
