"""Base of detectors with K groups of queries: detectors of boxes and of masks."""
import difflib
import logging
import math
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, OptConfigType
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .assigner import GroupHungarianAssigner
from .attention import group_self_attention
from .errors import ConfigError, warn_once
from .groups import check_count, chosen_groups, give_each_group
from .ops.deformable import save_memory
from .turns import check_groups_at_once

ALL_GROUPS = 'all'  # as test_cfg.query_group
OUR_KEYS = dict(train_cfg=('assigner', 'groups_at_once'), test_cfg=('query_group', 'each_group'))


class DecodedGroups:
    """Mixin of detectors and heads that choose which groups to decode.

    They must have ``num_query_groups``, ``training``, and ``test_cfg`` with ``query_group``.
    """

    @property
    def decoded_groups(self) -> range:
        """Groups to decode, by default all in training and one at inference."""
        groups, group = chosen_groups(), self.test_cfg['query_group']
        if groups is not None:
            return groups
        if self.training or group == ALL_GROUPS:
            return range(self.num_query_groups)
        return range(group, group + 1)


class GroupDetector(DecodedGroups):
    """Mixin that trains a detector of mmdet with K groups of queries and keeps one group.

    The parameters of ``group_modules`` have K blocks of rows, a block for each group. A subclass
    must set ``num_queries`` (N) before ``__init__``, and the stock detector must have ``decoder``
    and ``bbox_head`` after its own. Arguments as for :class:`GroupQueries`.
    """
    query_parameter = 'query_embedding.weight'  # has K * N rows
    separate_self_attn = True
    head_class: type = nn.Module  # required class of the head

    def __init__(self, *, num_query_groups: int = 11, train_cfg: OptConfigType = None,
                 test_cfg: OptConfigType = None, new_group_noise: float = 0.5, **kwargs) -> None:
        self.num_query_groups = check_count(
            'model.num_query_groups', num_query_groups, '1 is the detector without groups')
        check_count('model.num_queries', self.num_queries, 'it counts the queries of one group')
        for part in kwargs.keys() & {'decoder', 'bbox_head'}:
            kwargs[part] = without_numbers(kwargs[part], part, self.numbers)
        warn_of_typos(train_cfg=train_cfg, test_cfg=test_cfg)
        if train_cfg is not None:
            train_cfg = dict(
                train_cfg, assigner=assigner_config(train_cfg.get('assigner'), self.numbers))
        test_cfg = dict(dict(query_group=0), **(test_cfg or {}))
        check_test_cfg(test_cfg, num_query_groups, self.separate_self_attn)
        super().__init__(train_cfg=train_cfg, test_cfg=test_cfg, **kwargs)
        check_head(self)
        save_memory(self)
        self.new_group_noise = check_noise(new_group_noise)
        self.groups_at_once = check_groups_at_once(
            (train_cfg or {}).get('groups_at_once'), num_query_groups, self.separate_self_attn)
        self._make_groups()
        self._register_state_dict_hook(save_numbers)

    def _make_groups(self) -> None:
        """Make the parameters of all groups, and set N on decoder and assigner."""
        group_self_attention(self.decoder, self.group_size if self.separate_self_attn else None)
        if self.train_cfg is not None:
            self.bbox_head.assigner.num_queries = self.group_size
        for name in self.group_modules:
            give_each_group(self, name, self.num_query_groups)

    @property
    def numbers(self) -> Dict[str, int]:
        """N and K, under their names in configs and checkpoints."""
        return dict(num_queries=self.num_queries, num_query_groups=self.num_query_groups)

    @property
    def group_size(self) -> int:
        """Rows of one group among the decoder's queries, without denoising queries."""
        return self.num_queries

    @property
    def group_modules(self) -> List[str]:
        """Names of the modules whose parameters have K blocks of rows."""
        return ['query_embedding']

    def group_parameters(self) -> Iterator[Tuple[str, nn.Parameter]]:
        """Yield names and parameters of ``group_modules``."""
        for module in self.group_modules:
            yield from self.get_submodule(module).named_parameters(module)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList,
                rescale: bool = True) -> SampleList:
        """Detect objects by one group; arguments and results as for the stock detector.

        With ``test_cfg.each_group``, an image also gets ``group_instances``, the detections of
        every group alone, with their group in ``query_groups``, and ``query_group``, the kept
        group, in its meta information.
        """
        if not self.test_cfg.get('each_group'):
            return super().predict(batch_inputs, batch_data_samples, rescale)
        kept = self.test_cfg['query_group']
        found = self.predict_groups(batch_inputs, batch_data_samples, rescale)
        for sample, groups in zip(batch_data_samples, found):
            for group, instances in enumerate(groups):
                instances.query_groups = torch.full_like(instances.labels, group)
            sample.pred_instances = groups[kept]
            sample.group_instances = InstanceData.cat(groups)
            sample.set_metainfo(dict(query_group=kept))
        return batch_data_samples

    def _limit_detections(self, key: str, of_a_query: int) -> None:
        """Lower the number of detections to what the queries of ``query_group`` can make."""
        num_groups = self.num_query_groups if self.test_cfg['query_group'] == ALL_GROUPS else 1
        most = num_groups * self.num_queries * of_a_query
        self.test_cfg[key] = min(self.test_cfg.get(key, 100), most)
        self.bbox_head.test_cfg = self.test_cfg

    def stock_state_dict(self, query_group: Optional[int] = None) -> Dict[str, Tensor]:
        """Return the stock detector's state dict with the rows of ``query_group``.

        The default is the group of ``test_cfg``.
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

    def count_saved_groups(self, saved: Dict[str, Tensor]) -> int:
        """Return the number of groups in ``saved``; see :meth:`adapt_groups`."""
        if not saved:
            return 1
        name, rows = next(iter(saved.items()))  # later tensors may have rows for classes
        return max(1, len(rows) * self.num_query_groups // len(self.get_parameter(name)))

    def adapt_groups(self, saved: Dict[str, Tensor], metadata: Dict[str, Any],
                     seed: int = 0) -> Dict[str, Tensor]:
        """Convert a checkpoint's ``group_parameters`` from K' blocks of rows to K.

        With K < K' the first groups are kept. With K > K' the groups are repeated with noise,
        because groups with equal rows are matched alike, get equal gradients and stay equal. A
        constant tensor gets no noise, because the other tensors make its groups differ. If all
        tensors are constant, the first gets noise.

        Args:
            saved (dict[str, Tensor]): The checkpoint's tensors, of K' blocks of rows.
            metadata (dict): Has ``num_queries`` if the checkpoint has recorded N.
            seed (int): Seed of the noise.

        Returns:
            dict[str, Tensor]: Tensors of K blocks. A tensor without K' blocks is left out, and
            PyTorch reports its shape.

        Raises:
            ConfigError: If the query embedding has another N or another width.
        """
        new = self.num_query_groups
        old = self.count_saved_groups(saved)
        blocks = {name: len(self.get_parameter(name)) // new for name in saved}
        if self.query_parameter in saved:
            self.check_queries(saved[self.query_parameter], old, metadata.get('num_queries'))
        fitting = {name: rows for name, rows in saved.items() if len(rows) == old * blocks[name]}
        if old == new or not fitting:
            return fitting
        what = ('the first groups are kept' if new < old else
                f'groups are repeated with noise of {self.new_group_noise} standard deviations '
                '(model.new_group_noise)')
        print_log(f'{", ".join(fitting)}: num_query_groups={old} in the checkpoint, {new} in the '
                  f'model; {what}.', logger='current',
                  level=logging.INFO if new < old else logging.WARNING)
        scales = {name: (rows.max() > rows.min()) * rows.std(correction=0)
                  for name, rows in fitting.items()}
        if not any(scales.values()):
            scales[next(iter(scales))] = 1.
        return {name: repeat_groups(rows, old, new, self.new_group_noise * scales[name], seed)
                for name, rows in fitting.items()}

    def check_queries(self, rows: Tensor, saved_groups: int, saved_queries: Optional[int]) -> None:
        """Raise a ConfigError if a query embedding, (K' * N, dim), has another N or width."""
        name, num_queries = self.query_parameter, self.num_queries
        shape = self.get_parameter(name).shape
        same_queries = saved_queries in (None, num_queries)
        if not same_queries or rows.shape != (saved_groups * num_queries, *shape[1:]):
            saved = '' if saved_queries is None else f' in groups of {saved_queries}'
            raise ConfigError(
                f'{name} has shape {tuple(rows.shape)}{saved} in the checkpoint and '
                f'{tuple(shape)} in groups of model.num_queries={num_queries} in the model: only '
                'num_query_groups may differ; use num_queries and width of the checkpoint.')
        if saved_queries is None and saved_groups > 1:
            print_log(f'{name}: the checkpoint has no num_queries; its {len(rows)} rows '
                      f'are taken for {saved_groups} groups of {num_queries}. groupdetr convert '
                      'reads checkpoints of other detectors.',
                      logger='current', level=logging.WARNING)


def save_numbers(module: GroupDetector, state_dict: dict, prefix: str,
                 local_metadata: dict) -> None:
    """Write N and K into the metadata of a state dict; a state dict hook."""
    local_metadata.update(module.numbers)


def warn_of_typos(**parts: OptConfigType) -> None:
    """Warn of misspelled keys of ours, such as ``test_cfg.query_groups``."""
    for part, cfg in parts.items():
        for key in set(cfg or ()) - {*OUR_KEYS[part]}:
            for near in difflib.get_close_matches(key, OUR_KEYS[part], n=1, cutoff=0.8):
                warn_once(f'model.{part}.{key} is not used; the nearest name is {near}.')


def without_numbers(cfg: ConfigType, key: str, numbers: Dict[str, int]) -> ConfigDict:
    """Copy a part's config without N and K.

    Raises:
        ConfigError: If the part has other numbers than the detector.
    """
    for name, value in numbers.items():
        if cfg.get(name, value) != value:
            raise ConfigError(f'model.{key}.{name}={cfg[name]} contradicts model.{name}={value}: '
                              f'remove it from {key}.')
    return ConfigDict({name: value for name, value in cfg.items() if name not in numbers})


def assigner_config(assigner: OptConfigType, numbers: Dict[str, int]) -> ConfigDict:
    """Copy the config of an assigner without N and K.

    Raises:
        ConfigError: If there is no assigner, or it is not a ``GroupHungarianAssigner``.
    """
    if not assigner:
        raise ConfigError('model.train_cfg.assigner is missing: set '
                          "type='GroupHungarianAssigner' with match_costs.")
    name = assigner['type']
    found = TASK_UTILS.get(name) if isinstance(name, str) else name
    if found is None or not issubclass(found, GroupHungarianAssigner):
        raise ConfigError(f'model.train_cfg.assigner.type={name} matches all groups as one set: '
                          "use type='GroupHungarianAssigner' with the same match_costs.")
    return without_numbers(assigner, 'train_cfg.assigner', numbers)


def check_head(detector: 'GroupDetector') -> None:
    """Raise a ConfigError if the head is not a ``detector.head_class``."""
    head, family = type(detector.bbox_head), detector.head_class
    if not issubclass(head, family):
        raise ConfigError(f'model.bbox_head.type={head.__name__} does not fit model.type='
                          f'{type(detector).__name__}: set model.bbox_head.type to '
                          f"'{family.__name__}'.")


def check_test_cfg(test_cfg: dict, num_query_groups: int, separate_self_attn: bool) -> None:
    """Raise a ConfigError if ``query_group`` is invalid, or contradicts ``each_group``."""
    group = test_cfg['query_group']
    if type(group) not in (int, str) or group not in (*range(num_query_groups), ALL_GROUPS):
        raise ConfigError(f'model.test_cfg.query_group={group!r} is not one of the groups: '
                          f'choose 0 to {num_query_groups - 1}.')
    if test_cfg.get('each_group') and (group == ALL_GROUPS or not separate_self_attn):
        key = f'test_cfg.query_group={group}' if separate_self_attn else 'separate_self_attn=False'
        raise ConfigError('model.test_cfg.each_group=True evaluates each group alone, and '
                          f'model.{key} lets all groups detect together: remove one of them.')


def check_noise(noise: float) -> float:
    """Return ``new_group_noise``, or raise a ConfigError unless it is a number of at least 0."""
    if type(noise) not in (int, float) or not 0 <= noise < math.inf:
        raise ConfigError(f'model.new_group_noise={noise!r} must be a number of at least 0: the '
                          'relative noise on groups that a checkpoint does not have.')
    return noise


def repeat_groups(rows: Tensor, old: int, new: int, noise: float, seed: int) -> Tensor:
    """Keep the first ``new`` of ``old`` blocks of rows, or repeat the blocks in order.

    ``noise`` is the standard deviation of the noise on repeated blocks.
    """
    groups = list(rows.chunk(old)[:new])
    generator = torch.Generator().manual_seed(seed)
    for group in range(old, new):
        sample = torch.randn(groups[0].shape, generator=generator)
        groups.append(groups[group % old] + noise * sample.to(rows))
    return torch.cat(groups)
