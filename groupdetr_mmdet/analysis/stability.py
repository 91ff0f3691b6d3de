"""Stability of the matching from epoch to epoch (the paper's Figure 5)."""
from typing import List, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from ..compat import unwrapped
from ..config import check_groups
from ..errors import ConfigError
from .queries import count_changes, decode_queries, match_queries

# Keys of the matches and their images in the message hub, and so in checkpoints
MATCHES, IMAGES = 'matched_queries', 'matched_images'


@HOOKS.register_module()
class MatchingStabilityHook(Hook):
    """Log how many matches have changed since the last epoch.

    After each epoch the queries of each group are matched with the objects of validation images,
    without augmentation. Logs the scalars

    - ``instability/group0``, ..., ``/mean``: DN-DETR's score, see :func:`count_changes`;
    - ``changed_matches/group0``, ..., ``/mean``: the share of objects with another query.

    Args:
        num_images (int): Number of images, evenly spaced in the validation data. Defaults to 100.
    """
    priority = 'LOW'  # before the checkpoint hook

    def __init__(self, num_images: int = 100) -> None:
        self.num_images = num_images

    def before_train(self, runner: Runner) -> None:
        """Match once before training, unless a resumed run has the last epoch's matches."""
        name = type(unwrapped(runner.model)).__name__
        check_groups('custom_hooks: MatchingStabilityHook', dict(type=name))
        if runner.val_loop is None:
            raise ConfigError('custom_hooks: MatchingStabilityHook requires validation images: '
                              'set val_cfg, val_dataloader and val_evaluator, or remove the hook.')
        total = len(runner.val_dataloader.dataset)
        self.images = torch.linspace(0, total - 1, min(self.num_images, total)).long().tolist()
        if runner.message_hub.runtime_info.get(IMAGES) != self.images:
            self._match(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Match, and log the changes since the last epoch."""
        before = [torch.tensor(x, dtype=torch.long) for x in runner.message_hub.get_info(MATCHES)]
        after = self._match(runner)
        scalars = stability_scalars(before, after, unwrapped(runner.model).group_size)
        runner.visualizer.add_scalars(scalars, step=runner.epoch + 1)
        runner.logger.info(
            f'Matching: {scalars["changed_matches/mean"]:.1%} of the objects have another query '
            f'than an epoch ago, instability {scalars["instability/mean"]:.3f}')

    @torch.no_grad()
    def _match(self, runner: Runner) -> List[Tensor]:
        """Match the queries of the images, and keep the matches for the next epoch."""
        model, loader = unwrapped(runner.model), runner.val_dataloader
        was_training, matches = model.training, []
        model.eval()
        for first in range(0, len(self.images), loader.batch_size):
            batch = [loader.dataset[i] for i in self.images[first:first + loader.batch_size]]
            decoded = decode_queries(model, loader.collate_fn(batch))
            matches += [x.cpu() for x in match_queries(model, decoded)]
        model.train(was_training)
        runner.message_hub.update_info(IMAGES, self.images)
        # Lists, which checkpoints can hold without code
        runner.message_hub.update_info(MATCHES, [x.tolist() for x in matches])
        return matches


def stability_scalars(before: Sequence[Tensor], after: Sequence[Tensor], num_queries: int) -> dict:
    """Return the scalars of the hook; arguments as for :func:`count_changes`."""
    changed = torch.cat([a != b for a, b in zip(before, after)], 1).double().mean(1)
    scores = dict(instability=count_changes(before, after, num_queries), changed_matches=changed)
    scalars = {f'{name}/group{i}': x for name, values in scores.items()
               for i, x in enumerate(values.tolist())}
    return {**scalars, **{f'{name}/mean': x.mean().item() for name, x in scores.items()}}
