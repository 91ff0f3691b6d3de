"""Detectors that train K groups of queries and keep one at inference."""
from typing import Any, Callable, Dict, List, Tuple

from mmdet.structures import SampleList
from mmdet.utils import ConfigType
from mmengine.structures import InstanceData
from torch import Tensor

from .group_detector import ALL_GROUPS, GroupDetector, replaced_items
from .groups import fold_groups
from .ops.attention import fuse_layer, memory_projections
from .ops.recompute import LAYER_OPTIONS, set_layer_options


class GroupQueries(GroupDetector):
    """Mixin that gives a DETR of mmdet K groups of queries (paper, Section 3.2).

    In training the decoder gets the K * N queries of all groups, at inference the N queries of
    one. K is said here and nowhere else: the detector tells its decoder, head and assigner. With
    ``num_query_groups=1`` the detector is the stock one.

    A checkpoint of another K loads: fewer groups keep the first ones, more groups repeat them with
    a little noise, without which they would stay equal for ever.

    Args:
        num_queries (int): Queries of one group, N.
        num_query_groups (int): Groups in training, K. Defaults to 11, as in the paper.
        decoder (dict): Config of the decoder. Beside its own keys, ``num_cp`` is the number of
            layers, from the first, that compute their activations again in the backward pass
            (-1, none), and ``compile`` whether ``torch.compile`` compiles the layers, once for
            all image sizes (False).
        bbox_head (dict): Config of the head.
        train_cfg (dict, optional): Training config, its ``assigner`` a ``GroupHungarianAssigner``
            without K. With ``groups_at_once`` n groups take turns, n at a time, and the step has
            the memory of n groups; losses and gradients stay (None, all at once).
        test_cfg (dict, optional): Testing config: ``max_per_img`` detections (100) by the
            queries of group ``query_group`` (0), or by those of all groups together ('all').
            With ``each_group`` every group also detects for itself, see
            :meth:`GroupDetector.predict`.
        separate_self_attn (bool): Whether self-attention stays inside each group. Defaults to
            True; False is an ablation of the paper.
        new_group_noise (float): Noise on the groups that a loaded checkpoint does not have, and
            which repeat those that it has: standard deviation relative to that of each tensor.
            Defaults to 0.02; 0 leaves them equal.
        kwargs: As for the stock detector.

    Raises:
        ConfigError: If K or N is below 1, another part says another K or N, the assigner knows no
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

        Arguments and results are those of the stock detector, but for the number of rows.
        """
        decoder_inputs, head_inputs = super().pre_decoder(*args, **kwargs)
        for name in decoder_inputs.keys() & {'query', 'query_pos', 'reference_points'}:
            decoder_inputs[name] = decoder_inputs[name][:, self.decoded_rows]  # (bs, rows, dim)
        return decoder_inputs, head_inputs

    def prepare_turns(self, batch_inputs: Tensor,
                      batch_data_samples: SampleList) -> Tuple[Callable, Tensor]:
        """Return what computes the losses from the memory, and the memory that all groups share.

        Both are for :func:`losses_in_turns`; arguments as of ``loss``.
        """
        encoded, decoder_inputs = self.encode(batch_inputs, batch_data_samples)
        projections = memory_projections(self.decoder, encoded['memory'],
                                         decoder_inputs.get('memory_pos'))

        @replaced_items(*projections)
        def compute_losses(memory: Tensor) -> Dict[str, Tensor]:
            queries, head_inputs = self.pre_decoder(**dict(encoded, memory=memory))
            outputs = self.forward_decoder(**dict(decoder_inputs, **queries))
            return self.bbox_head.loss(
                **dict(head_inputs, **outputs), batch_data_samples=batch_data_samples)

        return compute_losses, encoded['memory']

    def encode(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tuple[Dict, Dict]:
        """Compute the inputs of :meth:`pre_decoder`, and those of ``forward_decoder`` but queries.

        Arguments are those of ``loss``.
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
        with self.using_groups(ALL_GROUPS):
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
