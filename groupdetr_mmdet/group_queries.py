"""Detectors that train K groups of queries and keep one at inference."""
from typing import Any, Dict, List, Tuple

from mmdet.structures import SampleList
from mmdet.utils import ConfigType
from mmengine.structures import InstanceData
from torch import Tensor

from .group_detector import GroupDetector
from .groups import decoding, fold_groups
from .ops.attention import fuse_layer
from .ops.recompute import LAYER_OPTIONS, set_layer_options
from .turns import decode_in_turns

# Encoder's predictions: name among mmdet's head inputs -> argument of `loss_by_feat`
LOSS_ARGUMENTS = dict(enc_outputs_class='enc_cls_scores', enc_outputs_coord='enc_bbox_preds')


class GroupQueries(GroupDetector):
    """Mixin that gives a DETR of mmdet K groups of queries (paper, Section 3.2).

    The decoder gets the K * N queries of all groups in training, and the N queries of one group
    at inference. Set K here alone; the detector passes N to decoder and assigner. With
    ``num_query_groups=1`` the detector is the stock detector.

    A checkpoint of another K loads. A detector with fewer groups keeps the first groups of the
    checkpoint, a detector with more groups repeats them with noise.

    Args:
        num_queries (int): Queries of one group, N.
        num_query_groups (int): Groups in training, K. Defaults to 11, as in the paper.
        decoder (dict): Config of the decoder, with two more keys. ``num_cp`` is the number of
            layers, from the first, whose activations the backward pass recomputes (-1: none).
            With ``compile``, ``torch.compile`` compiles the layers, once for all image sizes
            (False).
        bbox_head (dict): Config of the head.
        train_cfg (dict, optional): Training config. Its ``assigner`` must be a
            ``GroupHungarianAssigner`` without K. With ``groups_at_once`` n the decoder runs on n
            groups at a time under activation checkpointing, with the same losses and gradients
            (None: all groups in one pass).
        test_cfg (dict, optional): Testing config: ``max_per_img`` detections (100) by the
            queries of group ``query_group`` (0), or by the queries of all groups ('all').
            ``each_group`` adds detections by every group alone, see
            :meth:`GroupDetector.predict`.
        separate_self_attn (bool): Whether self-attention stays inside each group. Defaults to
            True; False is an ablation of the paper.
        new_group_noise (float): Noise on repeated groups, relative to the standard deviation of
            each tensor. Defaults to 0.5, in two stages to 0.02. With 0 the groups stay equal.
        kwargs: As for the stock detector.

    Raises:
        ConfigError: If K or N is below 1, another part has another K or N, the assigner has no
            groups, ``query_group`` is not one of the K groups, or ``groups_at_once`` is invalid.
    """

    def __init__(self, *, num_queries: int, decoder: ConfigType, separate_self_attn: bool = True,
                 **kwargs) -> None:
        self.num_queries, self.separate_self_attn = num_queries, separate_self_attn
        decoder = dict(decoder)
        layer_options = {name: decoder.pop(name) for name in LAYER_OPTIONS if name in decoder}
        super().__init__(num_queries=num_queries, decoder=decoder, **kwargs)
        head = self.bbox_head  # with a sigmoid a query makes a detection in every class
        self._limit_detections('max_per_img', head.num_classes if head.loss_cls.use_sigmoid else 1)
        for layer in (*self.encoder.layers, *self.decoder.layers):
            fuse_layer(layer)
        set_layer_options(self.decoder, **layer_options)

    def pre_decoder(self, *args, **kwargs) -> Tuple[Dict, Dict]:
        """Prepare K * N queries in training, N at inference (paper, Algorithm 1).

        Arguments and results are the stock detector's, with this number of rows.
        """
        with decoding(self.decoded_groups):
            return super().pre_decoder(*args, **kwargs)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Dict[str, Tensor]:
        """Compute the losses of all groups; arguments and results as for the stock detector."""
        if not self.training or self.groups_at_once is None:
            return super().loss(batch_inputs, batch_data_samples)
        encoded, decoder_inputs = self.encode(batch_inputs, batch_data_samples)

        def decode(groups: range, memory: Tensor) -> Dict[str, Any]:
            with decoding(groups):
                return self.predict_layers(dict(encoded, memory=memory), decoder_inputs)

        predictions = decode_in_turns(
            decode, self.num_query_groups, self.groups_at_once, encoded['memory'])
        return self.bbox_head.loss_by_feat(
            **predictions, batch_gt_instances=[x.gt_instances for x in batch_data_samples],
            batch_img_metas=[x.metainfo for x in batch_data_samples])

    def predict_layers(self, encoded: Dict[str, Any],
                       decoder_inputs: Dict[str, Any]) -> Dict[str, Any]:
        """Compute the predictions of the chosen groups, as arguments of ``loss_by_feat``.

        ``encoded`` and ``decoder_inputs`` are the results of :meth:`encode`.
        """
        queries, head_inputs = self.pre_decoder(**encoded)
        outputs = dict(head_inputs, **self.forward_decoder(**dict(decoder_inputs, **queries)))
        cls_scores, bbox_preds = self.bbox_head(
            outputs.pop('hidden_states'), outputs.pop('references'))
        return dict(all_layers_cls_scores=cls_scores, all_layers_bbox_preds=bbox_preds,
                    **{LOSS_ARGUMENTS.get(name, name): x for name, x in outputs.items()})

    def encode(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tuple[Dict, Dict]:
        """Run backbone and encoder; arguments as for ``loss``.

        Returns:
            tuple[dict, dict]: Arguments of :meth:`pre_decoder`, and of ``forward_decoder`` except
            the queries.
        """
        features = self.extract_feat(batch_inputs)
        encoder_inputs, decoder_inputs = self.pre_transformer(features, batch_data_samples)
        return self.forward_encoder(**encoder_inputs), decoder_inputs

    def predict_groups(self, batch_inputs: Tensor, batch_data_samples: SampleList,
                       rescale: bool) -> List[List[InstanceData]]:
        """Return each image's detections by each group, for :meth:`GroupDetector.predict`.

        Backbone, encoder and decoder run once for all groups. The head gets each group as a
        separate image, and so selects the best detections of each group.
        """
        with decoding(range(self.num_query_groups)):
            features = self.extract_feat(batch_inputs)
            head_inputs = self.forward_transformer(features, batch_data_samples)
        num_groups = self.num_query_groups
        results = self.bbox_head.predict(
            **{name: self._fold_rows(x) for name, x in head_inputs.items()}, rescale=rescale,
            batch_data_samples=[x for x in batch_data_samples for _ in range(num_groups)])
        return [results[i:i + num_groups] for i in range(0, len(results), num_groups)]

    def _fold_rows(self, rows: Any) -> Any:
        """Fold the groups into the batch, ``(..., bs, K * N, C) -> (..., bs * K, N, C)``."""
        if not isinstance(rows, Tensor):
            return [self._fold_rows(x) for x in rows]
        folded = fold_groups(rows.flatten(0, -3), self.group_size)
        return folded.unflatten(0, (*rows.shape[:-3], -1))
