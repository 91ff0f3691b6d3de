"""The official code's recorded trainings, run again by the shipped recipe and our runner."""
import functools
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.distributed as dist
from builders import collate
from mmdet.registry import DATASETS, HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from torch.utils.data import Dataset

from groupdetr_mmdet.config import read_config
from groupdetr_mmdet.training.runner import build_runner

from . import golden
from .case import from_official, model_config

EPOCHS, DROP = 4, 3  # of a recorded training, and the epoch after which the learning rate falls


@functools.cache
def draw_scenes(stem: Path) -> List[Tuple[torch.Tensor, Any]]:
    """Draw the scenes of a training, each an image and its ground truth, in float64.

    It is called outside of ``golden.float64``, which changes what is drawn.
    """
    scenes = golden.scenes(golden.load(stem)[0])
    batches = [collate([image], [(labels, boxes.double())]) for image, labels, boxes in scenes]
    return [(inputs[0].double(), samples[0]) for inputs, samples in batches]


@DATASETS.register_module(force=True)
class Scenes(Dataset):
    """The scenes of a training, in order."""

    def __init__(self, stem: str) -> None:
        self.scenes = draw_scenes(Path(stem))

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        image, sample = self.scenes[index]
        return dict(inputs=image, data_samples=sample)


@HOOKS.register_module(force=True)
class RecordHook(Hook):
    """Record loss, norm of the gradients and learning rate of each step; stop after one."""

    def __init__(self, stop_after: Optional[int] = None) -> None:
        self.stop_after, self.steps = stop_after, []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        loss = outputs['loss'].clone()
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        hub = runner.message_hub
        self.steps.append(dict(
            iteration=runner.iter, loss=loss.item(),
            grad_norm=hub.get_scalar('train/grad_norm').current(),
            lr=max(runner.optim_wrapper.get_lr()['lr'])))
        if runner.iter + 1 == self.stop_after:
            raise KeyboardInterrupt


class Trained(NamedTuple):
    """What a training has done."""
    steps: List[Dict[str, float]]
    start: Dict[str, torch.Tensor]  # the model's weights before the first step
    model: torch.nn.Module


def training_config(stem: Path, work_dir: Path, groups_at_once: Optional[int],
                    launcher: str) -> Config:
    """Config of a recorded training, with the optimizer and the schedule of the shipped one."""
    config = golden.load(stem)[0]['config']
    shipped = read_config('group_cond_detr_r50_12e')
    side = max(max(size) for size in config['image_sizes'])  # one size, however images are shared
    model = dict(model_config(config),
                 data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=side))
    model['train_cfg']['groups_at_once'] = groups_at_once
    schedule = dict(shipped.param_scheduler[0], milestones=[DROP])
    return Config(dict(
        default_scope='mmdet', model=model, work_dir=str(work_dir), launcher=launcher,
        optim_wrapper=shipped.optim_wrapper, param_scheduler=[schedule],
        train_cfg=dict(shipped.train_cfg, max_epochs=EPOCHS, val_interval=EPOCHS + 1),
        train_dataloader=dict(
            batch_size=1 if launcher == 'pytorch' else 2, num_workers=0,
            dataset=dict(type='Scenes', stem=str(stem)),
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate')),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=19)),
        custom_hooks=[dict(type='RecordHook')], log_level='ERROR'))


def train(stem: Path, work_dir: Path, groups_at_once: Optional[int] = None,
          launcher: str = 'none', stop_after: Optional[int] = None,
          resume: bool = False) -> Trained:
    """Train as recorded, from the recorded start or from the last checkpoint in ``work_dir``."""
    spec, _ = golden.load(stem)
    start = from_official(golden.initial_state_dict(spec))
    draw_scenes(stem)
    work_dir.mkdir(parents=True, exist_ok=True)
    cfg = training_config(stem, work_dir, groups_at_once, launcher)
    cfg.custom_hooks[0].stop_after = stop_after
    if resume:
        cfg.resume = True
    with golden.float64():
        runner = build_runner(cfg)
        model = getattr(runner.model, 'module', runner.model)
        runner._init_model_weights = lambda: model.load_state_dict(start, strict=False)
        hook = next(x for x in runner.hooks if isinstance(x, RecordHook))
        try:
            runner.train()
        except KeyboardInterrupt:
            pass
    return Trained(hook.steps, start, model)
