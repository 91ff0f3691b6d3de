"""Dry run: measure time and memory of a few training steps, and forecast the training."""
import copy
import math
import resource
import sys
import tempfile
from typing import Callable, List, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from ..compat import unwrapped
from ..config import iter_dicts
from ..group_queries import GroupQueries
from ..groups import decoding
from .progress import quiet_runner

WARM_UP, TIMED = 1, 3  # steps
SMALL_CONFIG = 'group_cond_detr_mbv2_30e'
GIB = 2**30
GPU_SIZES = (8, 12, 16, 24, 48, 80)  # GiB


def measure(cfg: Config) -> List[Tuple[str, str]]:
    """Train a few steps of a config; return a table of time and memory of the training."""
    with tempfile.TemporaryDirectory() as folder, quiet_runner(few_steps(cfg, folder)) as runner:
        runner.train()
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else \
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 * (sys.platform != 'darwin')
        model, batch = unwrapped(runner.model).train(), next(iter(runner.train_dataloader))
        group = bytes_of_a_group(model, batch)
    rows = describe(cfg, runner, peak)
    if group:
        memory = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
        others = model.num_query_groups - (model.groups_at_once or model.num_query_groups)
        rows.append(('by groups at once', describe_groups(
            peak + others * group, group, model.num_query_groups, memory)))
    return rows


def few_steps(cfg: Config, work_dir: str) -> Config:
    """Copy a config for a few steps without validation, checkpoints and logs of scalars."""
    cfg, steps = copy.deepcopy(cfg), WARM_UP + TIMED
    for _, part in iter_dicts(cfg.model, 'model'):  # do not download weights
        inits = part.get('init_cfg') or []
        if any(x.get('type') == 'Pretrained' for x in (
                inits if isinstance(inits, (list, tuple)) else [inits])):
            part.init_cfg = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=steps + 1)
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None, test_dataloader=None,
               test_cfg=None, test_evaluator=None, visualizer=None, resume=False,
               load_from=None, work_dir=work_dir)
    cfg.default_hooks.checkpoint = None
    return cfg


def describe(cfg: Config, runner: Runner, peak: int) -> List[Tuple[str, str]]:
    """Return the table of a runner that has trained a few steps; ``peak`` is in bytes."""
    seconds = runner.message_hub.get_scalar('train/time').mean(TIMED)
    lr = max(group.get('initial_lr', group['lr'])  # before any schedule
             for group in runner.optim_wrapper.optimizer.param_groups)
    epoch = len(runner.train_dataloader)
    steps = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs * epoch
    numbers = (cfg.train_dataloader.batch_size, runner.world_size,
               cfg.optim_wrapper.get('accumulative_counts', 1))
    return [('seconds a step', f'{seconds:.2f}'),
            ('steps', f'{steps}, {epoch} an epoch'),
            ('hours in all', f'{seconds * steps / 3600:.2f}, without validation'),
            ('peak memory', f'{peak / GIB:.1f} GiB of the ' + (
                'GPU' if torch.cuda.is_available() else 'process')),
            ('images an update', '{} = {} x {} processes x {} accumulated steps'.format(
                math.prod(numbers), *numbers)),
            ('learning rate', f'{lr:.3g}')]


def describe_groups(peak: int, group: int, num_groups: int, memory: Optional[int]) -> str:
    """Describe how many groups at once fit into ``memory`` bytes, or into common GPUs.

    ``peak`` is the memory with all groups at once, ``group`` the memory of a group, in bytes.
    """
    peaks, fits = [peak - n * group for n in reversed(range(num_groups))], {}
    for size in [memory] if memory else [size * GIB for size in GPU_SIZES]:
        if num_groups not in fits.values():  # leave out larger GPUs
            fits[size] = sum(x <= size for x in peaks)
    found = ', '.join(f'{n} in {size / GIB:.0f} GiB' for size, n in fits.items() if n)
    return (f'{peak / GIB:.1f} GiB with all {num_groups} groups at once, {peaks[0] / GIB:.1f} GiB '
            f'with groups_at_once=1; fitting: {found or "none"}')


def is_slow(cfg: Config) -> bool:
    """Return whether a CPU trains a large backbone."""
    return not torch.cuda.is_available() and \
        cfg.model.get('backbone', {}).get('depth') in (50, 101, 152)


def bytes_of_a_group(model: nn.Module, data: dict) -> int:
    """Return the bytes that autograd saves for a group, 0 without ``groups_at_once``."""
    if not (isinstance(model, GroupQueries) and model.separate_self_attn and
            model.num_query_groups > 1):
        return 0
    batch = model.data_preprocessor(data, True)
    groups_at_once, model.groups_at_once = model.groups_at_once, None
    kept = []
    for num_groups in (1, 2):
        with decoding(range(num_groups)):
            kept.append(kept_bytes(lambda: model.loss(batch['inputs'], batch['data_samples'])))
    model.groups_at_once = groups_at_once
    return kept[1] - kept[0]


def kept_bytes(compute: Callable[[], object]) -> int:
    """Return the bytes that autograd saves for the backward pass, each tensor once."""
    kept = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x  # keeps the address in use

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = compute()
    del result
    return sum(kept.values())
