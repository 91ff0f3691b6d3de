"""Detectors that train K groups of queries and keep one at inference."""
import contextlib
import logging
import math
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, OptConfigType
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .assigner import GroupHungarianAssigner
from .attention import group_self_attention
from .errors import ConfigError
from .groups import check_num_query_groups, count_groups, fold_groups, group_rows
from .ops.dropout import fuse_ffn
from .ops.recompute import LayerOptions
from .turns import ALL_AT_ONCE, AllGroups, check_groups_at_once, losses_in_turns

ALL_GROUPS = 'all'  # as test_cfg.query_group
QUERY_EMBEDDING = 'query_embedding.weight'


class GroupQueries:
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
    turn: AllGroups = ALL_AT_ONCE

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
        test_cfg = fill_test_cfg(test_cfg, numbers, bbox_head)
        if test_cfg.get('each_group'):
            check_each_group(test_cfg['query_group'], separate_self_attn)
        decoder = without_numbers(decoder, 'decoder', numbers)
        layer_options = LayerOptions(**{name: decoder.pop(name) for name in LayerOptions._fields
                                        if name in decoder})
        super().__init__(
            num_queries=num_queries,
            decoder=decoder,
            bbox_head=bbox_head,
            train_cfg=train_cfg,
            test_cfg=test_cfg,
            **kwargs)
        layer_options.apply(self.decoder)
        self.groups_at_once = check_groups_at_once(
            (train_cfg or {}).get('groups_at_once'), num_query_groups, separate_self_attn,
            self.bbox_head)
        self.new_group_noise = check_noise(new_group_noise)
        self._register_state_dict_hook(_save_numbers)

    @property
    def group_size(self) -> int:
        """Rows of one group among the decoder's queries, without denoising queries."""
        return self.num_queries

    @property
    def decoded_groups(self) -> range:
        """The groups that are decoded, all (or those in turn) in training and one at inference."""
        group = self.test_cfg['query_group']
        if self.training or group == ALL_GROUPS:
            return self.turn.groups or range(self.num_query_groups)
        return range(group, group + 1)

    @property
    def group_modules(self) -> List[str]:
        """Names of the modules that every group has for itself.

        Their parameters have K times the rows of the stock ones, block ``g`` being group ``g``'s.
        """
        return ['query_embedding']

    def group_parameters(self) -> Iterator[Tuple[str, nn.Parameter]]:
        """Yield the names and parameters, of K blocks of rows, of ``group_modules``."""
        for module in self.group_modules:
            yield from self.get_submodule(module).named_parameters(module)

    def _init_layers(self) -> None:
        super()._init_layers()
        for layer in (*self.encoder.layers, *self.decoder.layers):
            fuse_ffn(layer.ffn)
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
        groups = self.decoded_groups
        rows = slice(groups.start * self.group_size, groups.stop * self.group_size)
        for name in decoder_inputs.keys() & {'query', 'query_pos', 'reference_points'}:
            decoder_inputs[name] = decoder_inputs[name][:, rows]  # (bs, rows, dim)
        return decoder_inputs, head_inputs

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Dict[str, Tensor]:
        """Compute the losses of all groups, at once or in turns; arguments as the parent's."""
        if not self.training or self.groups_at_once is None:
            return super().loss(batch_inputs, batch_data_samples)
        encoded, decoder_inputs = self.encode(batch_inputs, batch_data_samples)

        def compute_losses(memory: Tensor) -> Dict[str, Tensor]:
            queries, head_inputs = self.pre_decoder(**dict(encoded, memory=memory))
            outputs = self.forward_decoder(**dict(decoder_inputs, **queries))
            return self.bbox_head.loss(
                **dict(head_inputs, **outputs), batch_data_samples=batch_data_samples)

        return losses_in_turns((self, self.bbox_head), self.groups_at_once, self.num_query_groups,
                               compute_losses, encoded['memory'])

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

    @contextlib.contextmanager
    def using_groups(self, query_group: Union[int, str]) -> Iterator[None]:
        """Detect by another group than ``test_cfg`` says, or by 'all'."""
        before = self.test_cfg
        self.test_cfg = dict(before, query_group=query_group)
        try:
            yield
        finally:
            self.test_cfg = before

    def stock_state_dict(self, query_group: Optional[int] = None) -> Dict[str, Tensor]:
        """Return the state dict of the stock detector, with the rows of one group.

        Args:
            query_group (int, optional): The group. Defaults to that of ``test_cfg``.
        """
        group = self.test_cfg['query_group'] if query_group is None else query_group
        rows = {name: x.detach().chunk(self.num_query_groups)[group]
                for name, x in self.group_parameters()}
        return {name: rows.get(name, x) for name, x in self.state_dict().items()}

    def _load_from_state_dict(self, state_dict: dict, prefix: str, local_metadata: dict,
                              *args) -> None:
        saved = {name: state_dict[prefix + name] for name, _ in self.group_parameters()
                 if prefix + name in state_dict}
        adapted = self.adapt_groups(saved, local_metadata)
        state_dict.update((prefix + name, rows) for name, rows in adapted.items())
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def count_saved_groups(self, saved: Dict[str, Tensor], metadata: Dict[str, Any]) -> int:
        """Number of groups in a checkpoint, by what it says or else by its rows.

        Arguments are those of :meth:`adapt_groups`.
        """
        if not saved:
            return 1
        # The first parameter tells: rows of later ones depend on the classes, too.
        name, rows = next(iter(saved.items()))
        block = len(self.get_parameter(name)) // self.num_query_groups
        said = metadata.get('num_query_groups')
        if said and len(rows) == said * block:
            return said
        return max(1, len(rows) // block)  # of an older file, or an edited one

    def adapt_groups(self, saved: Dict[str, Tensor], metadata: Dict[str, Any],
                     seed: int = 0) -> Dict[str, Tensor]:
        """Give a checkpoint's ``group_parameters`` the number of groups of this detector.

        Fewer groups are the first ones. More groups repeat those that there are, with noise:
        groups with equal rows are matched alike, get equal gradients and stay equal. A tensor of
        equal numbers gets none, for others tell its groups apart; if all are such, the first gets
        noise all the same.

        Args:
            saved (dict[str, Tensor]): The checkpoint's, of K' blocks of rows.
            metadata (dict): ``num_queries`` and ``num_query_groups`` of the checkpoint, where it
                says them.
            seed (int): Seed of the noise. Defaults to 0.

        Returns:
            dict[str, Tensor]: Of K blocks. A tensor that has not K' blocks is left out, and
            PyTorch reports its shape.

        Raises:
            ConfigError: If the query embedding is of another N or another width.
        """
        new = self.num_query_groups
        old = self.count_saved_groups(saved, metadata)
        blocks = {name: len(self.get_parameter(name)) // new for name in saved}
        if QUERY_EMBEDDING in saved:
            check_query_rows(saved[QUERY_EMBEDDING], self.query_embedding.weight.shape,
                             self.num_queries, old, metadata.get('num_queries'))
        fitting = {name: rows for name, rows in saved.items() if len(rows) == old * blocks[name]}
        if old == new or not fitting:
            return fitting
        announce_groups(old, new, self.new_group_noise, fitting)
        scales = {name: (rows.max() > rows.min()) * rows.std(correction=0)
                  for name, rows in fitting.items()}
        if not any(scales.values()):
            scales[next(iter(scales))] = 1.
        return {name: repeat_groups(rows, blocks[name], new, self.new_group_noise * scales[name],
                                    seed)
                for name, rows in fitting.items()}


def label_groups(groups: Sequence[InstanceData]) -> InstanceData:
    """Concatenate the detections of all groups of an image, each with its ``query_groups``."""
    for group, instances in enumerate(groups):
        instances.query_groups = torch.full_like(instances.labels, group)
    return InstanceData.cat(groups)


def add_group_rows(module: nn.Module, num_groups: int) -> None:
    """Give the parameters of a layer K blocks of rows, initialized as PyTorch does.

    A layer other than an embedding can then compute nothing: it is shown one block at a time.
    """
    for name, parameter in module.named_parameters(recurse=False):
        rows = parameter.detach().repeat(num_groups, *[1] * (parameter.dim() - 1))
        setattr(module, name, nn.Parameter(rows))
    if num_groups > 1 and hasattr(module, 'reset_parameters'):
        module.reset_parameters()


def _save_numbers(module: nn.Module, state_dict: dict, prefix: str,
                  local_metadata: dict) -> None:
    local_metadata['num_queries'] = module.num_queries
    local_metadata['num_query_groups'] = module.num_query_groups


def without_numbers(cfg: ConfigType, key: str, numbers: Dict[str, int]) -> dict:
    """Copy a part's config without the numbers that the detector says.

    Raises:
        ConfigError: If the config contradicts the detector.
    """
    for name, value in numbers.items():
        if cfg.get(name, value) != value:
            raise ConfigError(f'model.{key}.{name}={cfg[name]} contradicts model.{name}={value}: '
                              f'remove it from {key}, the detector says it.')
    return {name: value for name, value in cfg.items() if name not in numbers}


def assigner_config(assigner: OptConfigType, numbers: Dict[str, int]) -> dict:
    """Copy the assigner's config without the numbers that the detector says.

    Raises:
        ConfigError: If the assigner is missing, knows no groups or contradicts the detector.
    """
    if not assigner:
        raise ConfigError('model.train_cfg.assigner is missing: say '
                          "type='GroupHungarianAssigner' with match_costs.")
    assigner_type: Any = assigner['type']
    if isinstance(assigner_type, str):
        assigner_type = TASK_UTILS.get(assigner_type)
    if assigner_type is None or not issubclass(assigner_type, GroupHungarianAssigner):
        raise ConfigError(
            f'model.train_cfg.assigner.type={assigner["type"]} matches all groups as one set: '
            "use type='GroupHungarianAssigner' with the same match_costs.")
    return without_numbers(assigner, 'train_cfg.assigner', numbers)


def fill_test_cfg(test_cfg: OptConfigType, numbers: Dict[str, int],
                      bbox_head: ConfigType) -> dict:
    """Fill ``query_group`` in, and ask for no more detections than its queries can make.

    Raises:
        ConfigError: If ``query_group`` is not one of the K groups.
    """
    test_cfg = dict(dict(query_group=0, max_per_img=100), **(test_cfg or {}))
    groups = range(numbers['num_query_groups'])
    if test_cfg['query_group'] not in (*groups, ALL_GROUPS):
        raise ConfigError(
            f'model.test_cfg.query_group={test_cfg["query_group"]} is not one of the groups: '
            f'choose 0 to {groups[-1]}.')
    kept = len(groups) if test_cfg['query_group'] == ALL_GROUPS else 1
    # A query detects in each class by a sigmoid, and in one by a softmax, the heads' default.
    by_sigmoid = bbox_head.get('loss_cls', {}).get('use_sigmoid', False)
    most = kept * numbers['num_queries'] * (bbox_head['num_classes'] if by_sigmoid else 1)
    test_cfg['max_per_img'] = min(test_cfg['max_per_img'], most)
    return test_cfg


def check_each_group(query_group: Union[int, str], separate_self_attn: bool) -> None:
    """Check that groups detect alone, so that each can be evaluated.

    Raises:
        ConfigError: If they detect together.
    """
    for key, value, is_together, fix in (
        ('test_cfg.query_group', query_group, query_group == ALL_GROUPS, 'one of them'),
        ('separate_self_attn', separate_self_attn, not separate_self_attn, 'True')):
        if is_together:
            raise ConfigError(f'model.{key}={value} lets all groups detect together, and '
                              'model.test_cfg.each_group asks for each alone: set '
                              f'model.{key} to {fix}, or leave each_group out.')


def check_noise(noise: float) -> float:
    """Check that noise is a number, at least 0.

    Raises:
        ConfigError: If it is not.
    """
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise < math.inf:
        raise ConfigError(f'model.new_group_noise={noise} must be a number of at least 0: it is '
                          'the relative noise on groups that a checkpoint does not have.')
    return noise


def check_query_rows(rows: Tensor, shape: torch.Size, num_queries: int, saved_groups: int,
                     saved_num_queries: Optional[int] = None) -> None:
    """Check that a checkpoint's query embedding is that of a model, but for the number of groups.

    Args:
        rows (Tensor): The checkpoint's embedding, shape (K' * N, dim).
        shape (torch.Size): Shape of the model's embedding, (K * N, dim).
        num_queries (int): Queries of one group, N, in the model.
        saved_groups (int): Groups in the checkpoint, K'.
        saved_num_queries (int, optional): N in the checkpoint, where it says.

    Raises:
        ConfigError: If the checkpoint has another N or another width.
    """
    same_queries = saved_num_queries in (None, num_queries)
    if not same_queries or rows.shape != (saved_groups * num_queries, *shape[1:]):
        saved = '' if saved_num_queries is None else f' in groups of {saved_num_queries}'
        raise ConfigError(
            f'{QUERY_EMBEDDING} has shape {tuple(rows.shape)}{saved} in the checkpoint and '
            f'{tuple(shape)} in groups of model.num_queries={num_queries} in the model: only '
            'num_query_groups may differ; use the num_queries and the width of the checkpoint.')
    if saved_num_queries is None and saved_groups > 1:
        print_log(
            f'{QUERY_EMBEDDING}: the checkpoint does not say its num_queries; its {len(rows)} '
            f'rows are taken for {saved_groups} groups of {num_queries}. '
            'tools/convert_checkpoint.py knows checkpoints of other detectors.',
            logger='current', level=logging.WARNING)


def announce_groups(old: int, new: int, noise: float, names: Iterable[str]) -> None:
    """Log what becomes of a checkpoint's groups in a model of another number of them."""
    said = (f'{", ".join(names)}: the checkpoint has num_query_groups={old}, the model {new}; '
            f'the {"first groups are kept" if new < old else "groups are repeated"}')
    if new < old:
        print_log(f'{said}.', logger='current')
        return
    how = 'without noise (model.new_group_noise=0): equal groups may stay equal'
    if noise:
        how = f'with noise of {noise} of their standard deviation (model.new_group_noise)'
    print_log(f'{said}, {how}.', logger='current', level=logging.WARNING)


def repeat_groups(rows: Tensor, num_rows: int, num_query_groups: int, noise: float,
                  seed: int = 0) -> Tensor:
    """Keep the first groups, or repeat the groups in order, with noise on the repeated ones.

    Args:
        rows (Tensor): Rows of K' groups, shape (K' * num_rows, ...).
        num_rows (int): Rows of one group, as N of a query embedding.
        num_query_groups (int): Number of groups K to return.
        noise (float): Standard deviation of the noise. The first K' groups have none.
        seed (int): Seed of the noise. Defaults to 0.

    Returns:
        Tensor: Shape (K * num_rows, ...).
    """
    old = count_groups(len(rows), num_rows)
    groups = [rows[group_rows(group % old, num_rows)] for group in range(num_query_groups)]
    generator = torch.Generator().manual_seed(seed)
    for group in range(old, num_query_groups):
        sample = torch.randn(groups[group].shape, generator=generator)
        groups[group] = groups[group] + noise * sample.to(rows)
    return torch.cat(groups)
