"""What people set of a training without writing a config: each is one change of the config."""
import importlib.util
from typing import Optional

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from ..config import iter_dicts
from ..errors import ConfigError

AP = 'coco/bbox_mAP'
LEAST_GAIN = 0.001  # of AP, below which a validation does not count as better


def set_amp(cfg: Config) -> None:
    """Train with automatic mixed precision, on a CPU in bfloat16."""
    if get_device() != 'cpu':
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
        return
    dtype = cfg.optim_wrapper.pop('dtype', 'bfloat16')
    if dtype != 'bfloat16':
        raise ConfigError(f'optim_wrapper.dtype={dtype} needs a GPU and there is none: leave it '
                          'out, and --amp means bfloat16.')
    cfg.optim_wrapper.pop('loss_scale', None)
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'


def set_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate with the batch size."""
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise ConfigError('--auto-scale-lr: the config does not say auto_scale_lr.base_batch_size;'
                          ' set it to the batch size that the learning rate was chosen for.')
    cfg.auto_scale_lr.enable = True


def set_epochs(cfg: Config, epochs: int) -> None:
    """Train for a number of epochs; the learning rate changes at the same parts of them."""
    check_positive('--epochs', epochs)
    if 'max_epochs' not in cfg.train_cfg:
        raise ConfigError('--epochs: train_cfg of the config counts no epochs; set its max_iters '
                          'with --cfg-options train_cfg.max_iters=N.')
    ratio = epochs / cfg.train_cfg.max_epochs
    cfg.train_cfg.max_epochs = epochs
    for scheduler in cfg.get('param_scheduler') or []:
        if scheduler.get('by_epoch', True):
            for key in ('begin', 'end', 'T_max'):
                if scheduler.get(key):
                    scheduler[key] = max(1, round(scheduler[key] * ratio))
            if 'begin' in scheduler:  # a schedule has an epoch at least
                scheduler.begin = min(scheduler.begin, epochs - 1)
            if 'milestones' in scheduler:
                scheduler.milestones = sorted({max(1, round(x * ratio))
                                               for x in scheduler.milestones})


def set_batch_size(cfg: Config, batch_size: int) -> None:
    """Give a process a number of images at a time, and keep the images of an update.

    Gradients of as many steps are added up as make the config's number; a larger number of images
    makes an update larger, and ``auto_scale_lr`` follows it where it is on.
    """
    check_positive('--batch-size', batch_size)
    images = cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1)
    cfg.train_dataloader.batch_size = batch_size
    cfg.optim_wrapper.accumulative_counts = max(1, round(images / batch_size))


def scale_for_accumulation(cfg: Config) -> None:
    """Let ``auto_scale_lr`` see the images of an update: mmengine sees those of a step."""
    steps = cfg.optim_wrapper.get('accumulative_counts', 1)
    if steps > 1 and (cfg.get('auto_scale_lr') or {}).get('enable'):
        cfg.auto_scale_lr.base_batch_size /= steps


def average_weights(cfg: Config) -> None:
    """Average the weights of all steps (EMA), and evaluate the averaged ones."""
    add_hook(cfg, type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True,
             priority=49)


def stop_early(cfg: Config, patience: int) -> None:
    """End a training when that many validations in a row were not better than the best."""
    check_positive('--early-stop', patience)
    metric = (checkpoint_hook(cfg) or {}).get('save_best', 'auto')
    kinds = [str(x.get('type')) for _, x in iter_dicts(cfg.get('val_evaluator'), '')]
    if metric == 'auto' and not any('CocoMetric' in kind for kind in kinds):
        raise ConfigError(f'--early-stop follows {AP}, and val_evaluator has {", ".join(kinds)}: '
                          'name its metric as default_hooks.checkpoint.save_best, such as '
                          'pascal_voc/mAP.')
    add_hook(cfg, type='EarlyStoppingHook', monitor=AP if metric == 'auto' else metric,
             rule='greater', min_delta=LEAST_GAIN, patience=patience)


def log_to(cfg: Config, backend: str) -> None:
    """Write curves with TensorBoard or Weights & Biases, too, if it is installed."""
    package = backend.lower()
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f'--{package}: the package {package} is not installed: run pip install '
                          f'{package}, or leave --{package} out.')
    visualizer = cfg.setdefault('visualizer', dict(
        type='DetLocalVisualizer', name='visualizer', vis_backends=[dict(type='LocalVisBackend')]))
    visualizer.vis_backends = [*visualizer.vis_backends, dict(type=f'{backend}VisBackend')]


def keep_best(cfg: Config) -> None:
    """Keep the best checkpoint, where the config does not say which ones."""
    hook = checkpoint_hook(cfg)
    if hook and cfg.get('val_dataloader'):
        hook.setdefault('save_best', 'auto')


def checkpoint_hook(cfg: Config) -> Optional[ConfigDict]:
    """Config of the hook that writes checkpoints, which a config may not want (None)."""
    cfg.default_hooks = cfg.get('default_hooks') or {}
    return cfg.default_hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))


def fetch_once(cfg: Config) -> None:
    """Load no weights into the backbone where ``load_from`` brings those of the whole model."""
    backbone = cfg.model.get('backbone')
    if backbone and cfg.get('load_from') and not (cfg.get('resume') or cfg.allow_missing):
        backbone.init_cfg = None


def add_hook(cfg: Config, **hook) -> None:
    """Add a hook to those of the config."""
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def check_positive(name: str, value: int) -> None:
    """Refuse an argument of less than 1."""
    if value < 1:
        raise ConfigError(f'{name} {value} must be at least 1.')
