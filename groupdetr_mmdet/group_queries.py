"""Detectors that train K groups of queries and keep one at inference."""
from typing import Any, Callable, Dict, Tuple, Union

from mmdet.structures import SampleList
from mmdet.utils import ConfigType, OptConfigType
from torch import Tensor, nn

from .attention import group_self_attention
from .errors import ConfigError
from .group_detector import (ALL_GROUPS, GroupDetector, assigner_config, check_query_group,
                             label_groups, without_numbers)
from .groups import check_num_query_groups, fold_groups
from .ops.attention import fuse_layer
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
            With ``each_group`` every group also detects for itself, see :meth:`predict`.
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

    def __init__(self,
                 *,
                 num_queries: int,
                 num_query_groups: int = 11,
                 decoder: ConfigType,
                 bbox_head: ConfigType,
                 train_cfg: OptConfigType = None,
                 test_cfg: OptConfigType = None,
                 separate_self_attn: bool = True,
                 new_group_noise: float = 0.02,
                 **kwargs) -> None:
        self.num_query_groups = check_num_query_groups(num_query_groups)
        self.separate_self_attn = separate_self_attn
        if num_queries < 1:
            raise ConfigError(f'model.num_queries={num_queries} must be at least 1: it is the '
                              'number of queries of one group.')
        numbers = dict(num_query_groups=num_query_groups, num_queries=num_queries)
        if train_cfg is not None:
            assigner = assigner_config(train_cfg.get('assigner'), numbers)
            train_cfg = dict(train_cfg, assigner=assigner)
        bbox_head = without_numbers(bbox_head, 'bbox_head', numbers)
        test_cfg = limit_detections(test_cfg, numbers, bbox_head)
        if test_cfg.get('each_group'):
            check_each_group(test_cfg['query_group'], separate_self_attn)
        decoder = without_numbers(decoder, 'decoder', numbers)
        layer_options = {name: decoder.pop(name) for name in LAYER_OPTIONS if name in decoder}
        super().__init__(
            new_group_noise=new_group_noise,
            num_queries=num_queries,
            decoder=decoder,
            bbox_head=bbox_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            **kwargs)
        set_layer_options(self.decoder, **layer_options)

    def _init_layers(self) -> None:
        super()._init_layers()
        for layer in (*self.encoder.layers, *self.decoder.layers):
            fuse_layer(layer)
        self._tell_group_size()
        for name in self.group_modules:
            for module in self.get_submodule(name).modules():
                add_group_rows(module, self.num_query_groups)

    def _tell_group_size(self) -> None:
        """Tell decoder and assigner how many rows a group has; nothing else has to know."""
        group_self_attention(self.decoder, self.group_size if self.separate_self_attn else None)
        if self.train_cfg is not None:
            self.bbox_head.assigner.num_queries = self.group_size

    def pre_decoder(self, *args, **kwargs) -> Tuple[Dict, Dict]:
        """Prepare K * N queries in training, N at inference (paper, Algorithm 1).

        Args:
            args, kwargs: As for the stock detector.

        Returns:
            tuple[dict, dict]: Inputs of the decoder, ``query``, ``query_pos`` and, in some
            families, ``reference_points``, each of shape (bs, rows, dim), and of the head.
        """
        decoder_inputs, head_inputs = super().pre_decoder(*args, **kwargs)
        for name in decoder_inputs.keys() & {'query', 'query_pos', 'reference_points'}:
            decoder_inputs[name] = decoder_inputs[name][:, self.decoded_rows]  # (bs, rows, dim)
        return decoder_inputs, head_inputs

    def prepare_turns(self, batch_inputs: Tensor,
                      batch_data_samples: SampleList) -> Tuple[Callable, Tensor]:
        """Compute what all groups share, for :func:`losses_in_turns`; arguments as of ``loss``.

        Returns:
            tuple[Callable, Tensor]: What computes the losses from the memory, and the memory.
        """
        encoded, decoder_inputs = self.encode(batch_inputs, batch_data_samples)

        def compute_losses(memory: Tensor) -> Dict[str, Tensor]:
            queries, head_inputs = self.pre_decoder(**dict(encoded, memory=memory))
            outputs = self.forward_decoder(**dict(decoder_inputs, **queries))
            return self.bbox_head.loss(
                **dict(head_inputs, **outputs), batch_data_samples=batch_data_samples)

        return compute_losses, encoded['memory']

    def encode(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tuple[Dict, Dict]:
        """Compute what all groups share; arguments as for the stock detector's ``loss``.

        Returns:
            tuple[dict, dict]: The inputs of :meth:`pre_decoder`, among them ``memory``, and
            those of ``forward_decoder`` that are no queries.
        """
        features = self.extract_feat(batch_inputs)
        encoder_inputs, decoder_inputs = self.pre_transformer(features, batch_data_samples)
        return self.forward_encoder(**encoder_inputs), decoder_inputs

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList,
                rescale: bool = True) -> SampleList:
        """Detect objects by one group, and with ``test_cfg.each_group`` by every group, too.

        Then backbone and encoder run once and the decoder for all groups: the head is given each
        group as an image of its own, so that it selects a group's best detections as it selects
        an image's.

        Args:
            batch_inputs (Tensor): Images, shape (bs, 3, H, W).
            batch_data_samples (list[DetDataSample]): Each image's information.
            rescale (bool): Whether boxes are in pixels of the original image. Defaults to True.

        Returns:
            list[DetDataSample]: With ``pred_instances`` of ``query_group``. With ``each_group``,
            also ``group_instances`` of all groups, whose ``query_groups`` is the group of each,
            and ``query_group`` in the meta information.
        """
        if not self.test_cfg.get('each_group'):
            return super().predict(batch_inputs, batch_data_samples, rescale)
        with self.using_groups(ALL_GROUPS):
            head_inputs = self.forward_transformer(
                self.extract_feat(batch_inputs), batch_data_samples)
        num_groups = self.num_query_groups
        folded = {name: self._fold_rows(x) for name, x in head_inputs.items()}
        results = self.bbox_head.predict(
            **folded, rescale=rescale,
            batch_data_samples=[x for x in batch_data_samples for _ in range(num_groups)])
        for i, sample in enumerate(batch_data_samples):
            groups = results[i * num_groups:(i + 1) * num_groups]
            sample.pred_instances = groups[self.test_cfg['query_group']]
            sample.group_instances = label_groups(groups)
            sample.set_metainfo(dict(query_group=self.test_cfg['query_group']))
        return batch_data_samples

    def _fold_rows(self, rows: Any) -> Any:
        """Fold the groups into the batch, ``(..., bs, K * N, C) -> (..., bs * K, N, C)``."""
        if not isinstance(rows, Tensor):
            return [self._fold_rows(x) for x in rows]
        folded = fold_groups(rows.flatten(0, -3), self.group_size)
        return folded.unflatten(0, (*rows.shape[:-3], -1))


def add_group_rows(module: nn.Module, num_groups: int) -> None:
    """Give the parameters of a layer K blocks of rows, initialized as PyTorch does.

    A layer other than an embedding can then compute nothing: it is shown one block at a time.
    """
    for name, parameter in module.named_parameters(recurse=False):
        rows = parameter.detach().repeat(num_groups, *[1] * (parameter.dim() - 1))
        setattr(module, name, nn.Parameter(rows))
    if num_groups > 1 and hasattr(module, 'reset_parameters'):
        module.reset_parameters()


def limit_detections(test_cfg: OptConfigType, numbers: Dict[str, int],
                     bbox_head: ConfigType) -> dict:
    """Ask for no more detections than the queries of ``query_group``, 0 by default, can make."""
    test_cfg = dict(dict(query_group=0, max_per_img=100), **(test_cfg or {}))
    kept = check_query_group(test_cfg['query_group'], numbers['num_query_groups'])
    # A query detects in each class by a sigmoid, and in one by a softmax, the heads' default.
    by_sigmoid = bbox_head.get('loss_cls', {}).get('use_sigmoid', False)
    most = kept * numbers['num_queries'] * (bbox_head['num_classes'] if by_sigmoid else 1)
    test_cfg['max_per_img'] = min(test_cfg['max_per_img'], most)
    return test_cfg


def check_each_group(query_group: Union[int, str], separate_self_attn: bool) -> None:
    """Refuse ``each_group`` where all groups detect together."""
    for key, value, is_together, fix in (
        ('test_cfg.query_group', query_group, query_group == ALL_GROUPS, 'one of them'),
        ('separate_self_attn', separate_self_attn, not separate_self_attn, 'True')):
        if is_together:
            raise ConfigError(f'model.{key}={value} lets all groups detect together, and '
                              'model.test_cfg.each_group asks for each alone: set '
                              f'model.{key} to {fix}, or leave each_group out.')
