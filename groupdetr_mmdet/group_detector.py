"""What detectors with K groups of queries have in common, whatever they predict."""
import contextlib
import logging
import math
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import torch
from mmdet.registry import TASK_UTILS
from mmdet.utils import ConfigType, OptConfigType
from mmengine.logging import print_log
from torch import Tensor, nn

from .assigner import GroupHungarianAssigner
from .errors import ConfigError
from .groups import count_groups, group_rows
from .turns import ALL_AT_ONCE, AllGroups

ALL_GROUPS = 'all'  # as test_cfg.query_group


class DecodedGroups:
    """Mixin of detectors and heads that know which groups are decoded.

    They have ``num_query_groups``, ``test_cfg`` with ``query_group``, and ``training``. Where
    groups take turns, ``turn`` is the one that is computed.
    """
    turn: AllGroups = ALL_AT_ONCE

    @property
    def decoded_groups(self) -> range:
        """The groups that are decoded, all (or those in turn) in training and one at inference."""
        group = self.test_cfg['query_group']
        if self.training or group == ALL_GROUPS:
            return self.turn.groups or range(self.num_query_groups)
        return range(group, group + 1)


class GroupDetector(DecodedGroups):
    """Mixin that keeps K groups of queries: chooses one, loads other numbers of them.

    Some parameters have K blocks of rows, one for each group. The detector has ``num_queries``
    (N), ``num_query_groups`` (K) and ``new_group_noise``, see :class:`GroupQueries`, and
    registers ``save_numbers`` as a hook of its state dict.
    """
    # The parameter whose rows are the queries, N of each group.
    query_parameter = 'query_embedding.weight'

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

    @contextlib.contextmanager
    def using_groups(self, query_group: Union[int, str]) -> Iterator[None]:
        """Detect by another group than ``test_cfg`` says, or by 'all'."""
        before = self.test_cfg['query_group']
        self.test_cfg['query_group'] = query_group
        try:
            yield
        finally:
            self.test_cfg['query_group'] = before

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
        name = self.query_parameter
        if name in saved:
            check_query_rows(name, saved[name], self.get_parameter(name).shape, self.num_queries,
                             old, metadata.get('num_queries'))
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


def save_numbers(module: nn.Module, state_dict: dict, prefix: str,
                  local_metadata: dict) -> None:
    """Write N and K into the metadata of a state dict, as its hook."""
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


def check_query_group(query_group: Union[int, str], num_query_groups: int) -> int:
    """Return how many groups detect with ``test_cfg.query_group``.

    Raises:
        ConfigError: If it is not one of the K groups.
    """
    groups = range(num_query_groups)
    if query_group not in (*groups, ALL_GROUPS):
        raise ConfigError(f'model.test_cfg.query_group={query_group} is not one of the groups: '
                          f'choose 0 to {groups[-1]}.')
    return len(groups) if query_group == ALL_GROUPS else 1


def check_noise(noise: float) -> float:
    """Check that noise is a number, at least 0.

    Raises:
        ConfigError: If it is not.
    """
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise < math.inf:
        raise ConfigError(f'model.new_group_noise={noise} must be a number of at least 0: it is '
                          'the relative noise on groups that a checkpoint does not have.')
    return noise


def check_query_rows(name: str, rows: Tensor, shape: torch.Size, num_queries: int,
                     saved_groups: int, saved_num_queries: Optional[int] = None) -> None:
    """Check that a checkpoint's query embedding is that of a model, but for the number of groups.

    Args:
        name (str): Name of the embedding.
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
            f'{name} has shape {tuple(rows.shape)}{saved} in the checkpoint and '
            f'{tuple(shape)} in groups of model.num_queries={num_queries} in the model: only '
            'num_query_groups may differ; use the num_queries and the width of the checkpoint.')
    if saved_num_queries is None and saved_groups > 1:
        print_log(
            f'{name}: the checkpoint does not say its num_queries; its {len(rows)} '
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
