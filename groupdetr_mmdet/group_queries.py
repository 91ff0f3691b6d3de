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

# What mmdet's detectors call the encoder's predictions, and what `loss_by_feat` of its heads does
LOSS_ARGUMENTS = dict(enc_outputs_class='enc_cls_scores', enc_outputs_coord='enc_bbox_preds')


class GroupQueries(GroupDetector):
    """Mixin that gives a DETR of mmdet K groups of queries (paper, Section 3.2).

    In training the decoder gets the K * N queries of all groups, at inference the N queries of
    one. K is set here and nowhere else; the detector passes N to decoder and assigner. With
    ``num_query_groups=1`` the detector is the stock one.

    A checkpoint of another K loads: fewer groups keep the first ones, more groups repeat them with
    noise, without which they would stay equal.

    Args:
        num_queries (int): Queries of one group, N.
        num_query_groups (int): Groups in training, K. Defaults to 11, as in the paper.
        decoder (dict): Config of the decoder. Beside its own keys, ``num_cp`` is the number of
            layers, from the first, whose activations are recomputed in the backward pass
            (-1, none), and ``compile`` whether ``torch.compile`` compiles the layers, once for
            all image sizes (False).
        bbox_head (dict): Config of the head.
        train_cfg (dict, optional): Training config, its ``assigner`` a ``GroupHungarianAssigner``
            without K. With ``groups_at_once`` n the decoder runs on n groups at a time under
            activation checkpointing; losses and gradients stay (None: all at once).
        test_cfg (dict, optional): Testing config: ``max_per_img`` detections (100) by the
            queries of group ``query_group`` (0), or by the queries of all groups ('all').
            With ``each_group`` every group also detects for itself, see
            :meth:`GroupDetector.predict`.
        separate_self_attn (bool): Whether self-attention stays inside each group. Defaults to
            True; False is an ablation of the paper.
        new_group_noise (float): Noise on the groups that a loaded checkpoint does not have, and
            which repeat its groups: in standard deviations of each tensor.
            Defaults to 0.5, in two stages to 0.02; 0 leaves them equal.
        kwargs: As for the stock detector.

    Raises:
        ConfigError: If K or N is below 1, another part has another K or N, the assigner has no
            groups, ``query_group`` is none of the K, or the groups cannot take turns.
    """

    def __init__(self, *, num_queries: int, decoder: ConfigType, separate_self_attn: bool = True,
                 **kwargs) -> None:
        self.num_queries, self.separate_self_attn = num_queries, separate_self_attn
        decoder = dict(decoder)
        layer_options = {name: decoder.pop(name) for name in LAYER_OPTIONS if name in decoder}
        super().__init__(num_queries=num_queries, decoder=decoder, **kwargs)
        head = self.bbox_head  # a query detects in each class by a sigmoid, in one by a softmax
        self._limit_detections('max_per_img', head.num_classes if head.loss_cls.use_sigmoid else 1)
        for layer in (*self.encoder.layers, *self.decoder.layers):
            fuse_layer(layer)
        set_layer_options(self.decoder, **layer_options)

    def pre_decoder(self, *args, **kwargs) -> Tuple[Dict, Dict]:
        """Prepare K * N queries in training, N at inference (paper, Algorithm 1).

        Arguments and results as for the stock detector, except for the number of rows.
        """
        with decoding(self.decoded_groups):
            return super().pre_decoder(*args, **kwargs)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Dict[str, Tensor]:
        """Compute the losses of all groups, decoded at once or in turns, as the stock detector."""
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
        """Predict by the decoded groups what the head's ``loss_by_feat`` supervises.

        ``encoded`` and ``decoder_inputs`` are what :meth:`encode` returns.
        """
        queries, head_inputs = self.pre_decoder(**encoded)
        outputs = dict(head_inputs, **self.forward_decoder(**dict(decoder_inputs, **queries)))
        cls_scores, bbox_preds = self.bbox_head(
            outputs.pop('hidden_states'), outputs.pop('references'))
        return dict(all_layers_cls_scores=cls_scores, all_layers_bbox_preds=bbox_preds,
                    **{LOSS_ARGUMENTS.get(name, name): x for name, x in outputs.items()})

    def encode(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tuple[Dict, Dict]:
        """Compute the inputs of :meth:`pre_decoder`, and of ``forward_decoder`` except queries.

        Arguments as for ``loss``.
        """
        features = self.extract_feat(batch_inputs)
        encoder_inputs, decoder_inputs = self.pre_transformer(features, batch_data_samples)
        return self.forward_encoder(**encoder_inputs), decoder_inputs

    def predict_groups(self, batch_inputs: Tensor, batch_data_samples: SampleList,
                       rescale: bool) -> List[List[InstanceData]]:
        """Return each image's detections by each group, for :meth:`GroupDetector.predict`.

        Backbone, encoder and decoder run once for all groups: the head is given each group as an
        image of its own, so that it selects a group's best detections as it selects an image's.
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
