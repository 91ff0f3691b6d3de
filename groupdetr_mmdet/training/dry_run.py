"""What a training will take: a few of its steps, timed."""
import resource
import sys
import tempfile
import time
from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from ..host.processes import unwrapped
from .forecast import Forecast, make_forecast
from .progress import quiet_runner

WARM_UP, TIMED = 1, 3  # steps
SMALL_CONFIG = 'group_cond_detr_mbv2_30e'


class Measured(NamedTuple):
    """What a few steps took.

    Attributes:
        seconds (float): Of one step.
        epoch_length (int): Steps of an epoch.
        peak_memory (int): Bytes, of the GPU, or of the process where there is none.
        lr (float): The greatest learning rate of all parameter groups.
        world_size (int): Processes.
        forecast (Forecast, optional): Of the memory by groups at once, for a detector with groups.
    """
    seconds: float
    epoch_length: int
    peak_memory: int
    lr: float
    world_size: int
    forecast: Optional[Forecast] = None


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


def measure(cfg: Config) -> Measured:
    """Train for a few steps as a config says, in a folder that is then removed."""
    cfg = cfg.copy()
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=WARM_UP + TIMED,
                         val_interval=WARM_UP + TIMED + 1)
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None, test_dataloader=None,
               test_cfg=None, test_evaluator=None, resume=False)
    cfg.default_hooks.checkpoint = None
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or []
                        if hook['type'] != 'EarlyStoppingHook']
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        with quiet_runner(cfg) as runner:
            timing = TimingHook()
            runner.register_hook(timing)
            runner.train()
            peak = peak_memory()
            forecast = make_forecast(unwrapped(runner.model).train(),
                                     next(iter(runner.train_dataloader)), peak)
    seconds = (timing.times[-1] - timing.times[-1 - TIMED]) / TIMED
    lr = max(group.get('initial_lr', group['lr'])  # before any schedule
             for group in runner.optim_wrapper.optimizer.param_groups)
    return Measured(seconds, len(runner.train_dataloader), peak, lr, runner.world_size, forecast)


def peak_memory() -> int:
    """Most bytes that were used at once: of the GPU, or by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == 'darwin' else usage * 1024


def describe(measured: Measured, cfg: Config) -> List[Tuple[str, str]]:
    """Say what was measured, and what it makes of the whole training, as the rows of a table."""
    batch_size = cfg.train_dataloader.batch_size
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    steps = cfg.train_cfg.get('max_iters') or cfg.train_cfg.max_epochs * measured.epoch_length
    images = f'{batch_size} x {measured.world_size} processes x {accumulated} steps added up'
    rows = [
        ('seconds a step', f'{measured.seconds:.2f}'),
        ('steps', f'{steps}, {measured.epoch_length} an epoch'),
        ('hours in all', f'{measured.seconds * steps / 3600:.2f}, without validation'),
        ('peak memory', f'{measured.peak_memory / 2**30:.1f} GiB of the '
         f'{"GPU" if torch.cuda.is_available() else "process"}'),
        ('images an update', f'{batch_size * measured.world_size * accumulated} = {images}'),
        ('learning rate', f'{measured.lr:.3g}'),
    ]
    if measured.forecast is not None:
        memory = None
        if torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        rows.insert(4, ('by groups at once', measured.forecast.describe(memory)))
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
