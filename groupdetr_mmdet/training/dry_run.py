"""What a training will take: a few of its steps, timed, and their memory."""
import math
import resource
import sys
import tempfile
import time
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..group_queries import GroupQueries
from ..groups import decoding
from ..compat import unwrapped
from .progress import quiet_runner

WARM_UP, TIMED = 1, 3  # steps
SMALL_CONFIG = 'group_cond_detr_mbv2_30e'
GPU_SIZES = (8, 12, 16, 24, 48, 80)  # GiB


class TimingHook(Hook):
    """Note when steps end."""
    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.times: List[float] = []

    def after_train_iter(self, *args: Any, **kwargs: Any) -> None:
        """Wait for the device, and note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def measure(cfg: Config) -> List[Tuple[str, str]]:
    """Train for a few steps as a config says; return rows of a table on what all steps take."""
    timing = TimingHook()
    with tempfile.TemporaryDirectory() as folder, quiet_runner(few_steps(cfg, folder)) as runner:
        runner.register_hook(timing)
        runner.train()
        peak = peak_memory()
        forecast = make_forecast(
            unwrapped(runner.model).train(), next(iter(runner.train_dataloader)), peak)
    seconds = (timing.times[-1] - timing.times[-1 - TIMED]) / TIMED
    return describe(cfg, runner, seconds, peak, forecast)


def few_steps(cfg: Config, work_dir: str) -> Config:
    """Config of a training of a few steps, without validation."""
    cfg = cfg.copy()
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=WARM_UP + TIMED,
                         val_interval=WARM_UP + TIMED + 1)
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None, test_dataloader=None,
               test_cfg=None, test_evaluator=None, visualizer=None, resume=False,
               work_dir=work_dir)
    cfg.default_hooks.checkpoint = None
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or []
                        if hook['type'] != 'EarlyStoppingHook']
    return cfg


def peak_memory() -> int:
    """Most bytes that were used at once: of the GPU, or by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == 'darwin' else usage * 1024


def describe(cfg: Config, runner: Runner, seconds: float, peak: int,
             forecast: Optional['Forecast']) -> List[Tuple[str, str]]:
    """Say what some steps took, the peak in bytes, and what all of the config will take."""
    lr = max(group.get('initial_lr', group['lr'])  # before any schedule
             for group in runner.optim_wrapper.optimizer.param_groups)
    epoch_length = len(runner.train_dataloader)
    steps = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs * epoch_length
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    numbers = cfg.train_dataloader.batch_size, runner.world_size, accumulated
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory \
        if torch.cuda.is_available() else None
    rows = [
        ('seconds a step', f'{seconds:.2f}'),
        ('steps', f'{steps}, {epoch_length} an epoch'),
        ('hours in all', f'{seconds * steps / 3600:.2f}, without validation'),
        ('peak memory', f'{peak / 2**30:.1f} GiB of the {"GPU" if memory else "process"}'),
        *([('by groups at once', forecast.describe(memory))] if forecast else []),
        ('images an update', '{} = {} x {} processes x {} steps added up'.format(
            math.prod(numbers), *numbers)),
        ('learning rate', f'{lr:.3g}'),
    ]
    recipe = cfg.get('auto_scale_lr') or {}
    if 'base_batch_size' in recipe:
        divided = accumulated if recipe.get('enable') else 1  # by scale_for_accumulation
        rows.append(('of the recipe', f'{cfg.optim_wrapper.optimizer.lr:.3g} for '
                     f'{recipe.base_batch_size * divided:g} images an update'))
    return rows


def is_slow(cfg: Config) -> bool:
    """Whether a CPU trains with a large backbone."""
    return not torch.cuda.is_available() and \
        cfg.model.get('backbone', {}).get('depth') in (50, 101, 152)


class Forecast(NamedTuple):
    """Peak memory of a step by the number of groups that are computed at once."""
    peak: int  # measured, in bytes, with `measured_groups` at once
    measured_groups: int
    group: int  # bytes that a group adds, see `bytes_of_a_group`
    num_query_groups: int  # number of all groups, K

    def peak_of(self, groups_at_once: int) -> int:
        """Return the peak in bytes of a step that computes some groups at once."""
        return self.peak + (groups_at_once - self.measured_groups) * self.group

    def fitting(self, memory: int) -> Optional[int]:
        """Return how many groups at once fit into some bytes of memory, None if not one does."""
        fit = [n for n in range(1, self.num_query_groups + 1) if self.peak_of(n) <= memory]
        return max(fit, default=None)

    def describe(self, memory: Optional[int] = None) -> str:
        """Say what all groups take, what one takes, and what fits into one GPU, or common ones."""
        sizes = [memory] if memory else [size * 2**30 for size in GPU_SIZES]
        fits = [(size, self.fitting(size)) for size in sizes]
        fits = [f'{n} in {size / 2**30:.0f} GiB' for size, n in fits if n is not None]
        if not memory:  # sizes in which all groups fit are all alike
            is_all = [x.startswith(f'{self.num_query_groups} in') for x in fits]
            fits = fits[:is_all.index(True) + 1] if True in is_all else fits
        return (f'{self.peak_of(self.num_query_groups) / 2**30:.1f} GiB with all '
                f'{self.num_query_groups} groups at once, {self.peak_of(1) / 2**30:.1f} GiB with '
                f'groups_at_once=1; fitting: {", ".join(fits) or "none"}')


def make_forecast(model: nn.Module, data: dict, peak: int) -> Optional[Forecast]:
    """Forecast from a peak in bytes and a batch; None where groups cannot take turns."""
    if not isinstance(model, GroupQueries) or model.num_query_groups == 1 or \
            not model.separate_self_attn:
        return None
    num_groups = model.num_query_groups
    return Forecast(
        peak, model.groups_at_once or num_groups, bytes_of_a_group(model, data), num_groups)


def bytes_of_a_group(model: nn.Module, data: dict) -> int:
    """Count what a step keeps for the backward pass of one group more; arguments as above."""
    batch = model.data_preprocessor(data, True)
    kept = []
    in_turns, model.groups_at_once = model.groups_at_once, None
    for num_groups in (1, 2):
        with decoding(range(num_groups)):
            kept.append(kept_bytes(lambda: model.loss(batch['inputs'], batch['data_samples'])))
    model.groups_at_once = in_turns
    return kept[1] - kept[0]


def kept_bytes(compute: Callable[[], object]) -> int:
    """Count the bytes that autograd keeps of a computation, each tensor once."""
    kept = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x  # alive as long as the result, so that no address comes twice

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = compute()
    del result
    return sum(kept.values())
