"""Options of ``groupdetr train``: each function changes a config, in place."""
from typing import Optional

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from ..config import iter_dicts
from ..errors import ConfigError

AP = 'coco/bbox_mAP'


def set_amp(cfg: Config) -> None:
    """Train with automatic mixed precision; on a CPU in bfloat16."""
    if get_device() != 'cpu':
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
        return
    for key in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(key, None)
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'


def set_epochs(cfg: Config, epochs: int) -> None:
    """Set the number of epochs; learning rate and augmentation change at the same fractions."""
    if 'max_epochs' not in cfg.train_cfg:
        raise ConfigError('--epochs: train_cfg of the config counts no epochs; set its max_iters '
                          'with --cfg-options train_cfg.max_iters=N.')
    ratio = epochs / cfg.train_cfg.max_epochs
    cfg.train_cfg.max_epochs = epochs
    for _, scheduler in iter_dicts(cfg.get('param_scheduler'), 'param_scheduler'):
        by_epoch = scheduler.get('by_epoch', True)
        if by_epoch or not {'factor', 'start_factor'} & {*scheduler}:  # a warm-up by steps stays
            for key in ('begin', 'end', 'T_max', 'step_size', 'total_steps'):
                if scheduler.get(key):
                    scheduler[key] = max(1, round(scheduler[key] * ratio))
            if by_epoch and 'begin' in scheduler:  # a schedule requires an epoch
                scheduler.begin = min(scheduler.begin, epochs - 1)
            if 'milestones' in scheduler:
                scheduler.milestones = sorted({max(1, round(x * ratio))
                                               for x in scheduler.milestones})
    for _, hook in iter_dicts(cfg.get('custom_hooks'), 'custom_hooks'):
        if 'switch_epoch' in hook:  # of PipelineSwitchHook
            hook['switch_epoch'] = max(1, round(hook['switch_epoch'] * ratio))


def set_batch_size(cfg: Config, batch_size: int) -> None:
    """Set the images of a step in each process, and keep the images of an update.

    Gradient accumulation keeps the config's number of images of an update. If a step has more
    images, so has the update.
    """
    images = cfg.train_dataloader.batch_size * cfg.optim_wrapper.get('accumulative_counts', 1)
    cfg.train_dataloader.batch_size = batch_size
    cfg.optim_wrapper.accumulative_counts = max(1, round(images / batch_size))


def scale_for_accumulation(cfg: Config) -> None:
    """Let ``auto_scale_lr`` count the images of an update instead of a step."""
    steps, scale = cfg.optim_wrapper.get('accumulative_counts', 1), cfg.get('auto_scale_lr') or {}
    if scale.get('enable') and 'base_batch_size' in scale:
        scale.base_batch_size /= steps


def average_weights(cfg: Config) -> None:
    """Average the weights of all steps (EMA), and evaluate the average."""
    add_hook(cfg, type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True,
             priority=49)


def stop_early(cfg: Config, patience: int) -> None:
    """End a run after ``patience`` validations in a row without a better result.

    Raises:
        ConfigError: If the metric to follow is unknown.
    """
    metric = (checkpoint_hook(cfg) or {}).get('save_best', 'auto')
    metric = metric[0] if isinstance(metric, (list, tuple)) else metric
    kinds = [str(x.get('type')) for _, x in iter_dicts(cfg.get('val_evaluator'), '')]
    if metric == 'auto' and not any('CocoMetric' in kind for kind in kinds):
        raise ConfigError(f'--early-stop follows {AP}, and val_evaluator has {", ".join(kinds)}: '
                          'set default_hooks.checkpoint.save_best to its metric, such as '
                          'pascal_voc/mAP.')
    percent = dict(risen=2., min_delta=.1) if metric.endswith('PQ') else {}
    add_hook(cfg, type='RisenEarlyStoppingHook', monitor=AP if metric == 'auto' else metric,
             patience=patience, **percent)


def augment_test(cfg: Config) -> None:
    """Test with the config's ``tta_model`` and ``tta_pipeline``; default: mmdet's, two flips."""
    datasets = [x for _, x in iter_dicts(cfg.test_dataloader, '') if 'pipeline' in x]
    flips = dict(type='TestTimeAug', transforms=[
        [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)],
        [dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                                               'scale_factor', 'flip', 'flip_direction'))]])
    pipeline = cfg.get('tta_pipeline') or [*datasets[0].pipeline[:-1], flips]
    for dataset in datasets:
        dataset.pipeline = pipeline
    cfg.model = dict(cfg.get('tta_model') or dict(type='DetTTAModel', tta_cfg=dict(
        nms=dict(type='nms', iou_threshold=.5), max_per_img=100)), module=cfg.model)


def log_to(cfg: Config, backend: str) -> None:
    """Also log scalars to 'Tensorboard' or 'Wandb'."""
    cfg.visualizer = cfg.get('visualizer') or dict(
        type='DetLocalVisualizer', name='visualizer', vis_backends=[dict(type='LocalVisBackend')])
    added, backends = dict(type=f'{backend}VisBackend'), cfg.visualizer.get('vis_backends') or []
    cfg.visualizer.vis_backends = [x for x in backends if x != added] + [added]


def keep_best(cfg: Config) -> None:
    """Keep the best checkpoint, unless the config sets ``save_best`` or has another hook."""
    hook = checkpoint_hook(cfg)
    if hook and 'CheckpointHook' in str(hook.get('type')) and cfg.get('val_dataloader'):
        hook.setdefault('save_best', 'auto')


def checkpoint_hook(cfg: Config) -> Optional[ConfigDict]:
    """Return the config of the hook that writes checkpoints, None if it is switched off."""
    cfg.default_hooks = cfg.get('default_hooks') or {}
    if 'checkpoint' not in cfg.default_hooks:
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    return cfg.default_hooks.checkpoint


def fetch_once(cfg: Config) -> None:
    """Do not load backbone weights if ``load_from`` has the weights of the whole model."""
    backbone = cfg.model.get('backbone')
    if backbone and cfg.get('load_from') and not (cfg.get('resume') or cfg.allow_missing):
        backbone.init_cfg = None


def add_hook(cfg: Config, **hook) -> None:
    """Add a custom hook to a config, or replace the hook of the same type."""
    others = [x for x in cfg.get('custom_hooks') or []
              if not isinstance(x, dict) or x.get('type') != hook['type']]
    cfg.custom_hooks = [*others, hook]
