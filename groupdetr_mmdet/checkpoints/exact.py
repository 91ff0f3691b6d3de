"""Resume a run exactly, by random numbers that depend on the step alone.

Each step and each image seed the generators by the run's seed, the process and the place in the
training. So a run continues at any batch, with any number of workers, without a saved state of
generators, samplers or workers.
"""
import math
import random
from typing import Any, Dict, Iterator, List, Optional, Sequence, Union

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, Sampler

PROGRESS = 'groupdetr_progress'  # key in a checkpoint
STEP, SAMPLE = 1, 2  # streams of random numbers


def seed_generators(*key: int) -> None:
    """Seed Python, NumPy and PyTorch, and the GPU if this process uses it."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    seed = int(words[2]) << 31 | int(words[3]) >> 1
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class SeededBatch(list):
    """Indices of a batch; iterating seeds the generators, by ``key``, before each index."""

    def __init__(self, indices: Sequence[int], key: tuple) -> None:
        super().__init__(indices)
        self.key = key

    def __iter__(self) -> Iterator[int]:
        for place, index in enumerate(super().__iter__()):
            seed_generators(*self.key, place)
            yield index

    def __reduce__(self) -> tuple:
        """Pickle without iterating, which would seed the generators of this process."""
        return SeededBatch, (list(super().__iter__()), self.key)


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(Sampler):
    """Batches whose images draw the same random numbers in a resumed run.

    Arguments as for PyTorch's ``BatchSampler``, which makes the batches unless the config
    ``batch_sampler`` names another class.
    """
    start = 0  # first batch to yield

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False,
                 batch_sampler: Optional[dict] = None) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.batches: Any = BatchSampler(sampler, batch_size, drop_last)
        if batch_sampler is not None:
            self.batches = DATA_SAMPLERS.build(
                batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size))

    def __len__(self) -> int:
        """The number of batches of an epoch, also of a resumed epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[List[int]]:
        """Yield the batches of an epoch, from ``start`` on."""
        rank, _ = get_dist_info()
        seed, epoch = getattr(self.sampler, 'seed', 0) or 0, getattr(self.sampler, 'epoch', 0)
        for number, indices in enumerate(self.batches):
            if number >= self.start:
                yield SeededBatch(indices, (SAMPLE, seed, rank, epoch, number))


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """``EpochBasedTrainLoop`` that can resume inside an epoch."""
    batches_done = 0  # of this epoch

    def run_epoch(self) -> None:
        """Run an epoch, or the rest of a resumed epoch."""
        self.dataloader.batch_sampler.start = self.batches_done
        super().run_epoch()
        self.batches_done = 0

    def run_iter(self, idx: int, data_batch: Union[dict, Sequence[dict]]) -> None:
        """Run a step; ``idx`` counts the batches since the start or resumption."""
        idx += self.dataloader.batch_sampler.start
        self.batches_done = idx + 1
        super().run_iter(idx, data_batch)


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Seed every step, and save and restore the position in the epoch.

    With another number of processes or images in a batch, or a checkpoint without the position, a
    run continues at the start of the epoch, and the log has a warning. The log also has a warning
    if transforms mix in earlier images, which a checkpoint does not keep.
    """
    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, **kwargs: Any) -> None:
        """Seed the generators for this step."""
        seed_generators(STEP, runner.seed, get_dist_info()[0], runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Save the position in the epoch."""
        loop = runner.train_loop
        inside = checkpoint['meta']['epoch'] == loop.epoch
        done = getattr(loop, 'batches_done', 0) if inside else 0
        checkpoint[PROGRESS] = dict(self._layout(runner), batches_done=done)

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Restore the position in the epoch."""
        meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
        if not runner._resume or 'epoch' not in (meta or ()):
            return  # CheckedWeightsHook raises an error
        layout, saved = self._layout(runner), checkpoint.get(PROGRESS)
        saved = saved if isinstance(saved, dict) else {}
        done = saved.get('batches_done')
        changes = ', '.join(f'{name} was {saved.get(name)} and is {value}'
                            for name, value in layout.items() if saved.get(name) != value)
        if not isinstance(done, int) or not changes and done not in range(layout['batches'] + 1):
            runner.logger.warning('The checkpoint lacks the position in the epoch: the run '
                                  'continues with other random numbers.')
        elif changes:
            runner.logger.warning(
                f'The run continues with other batches than before, because {changes}.')
        elif isinstance(runner.train_loop, ResumableTrainLoop):
            runner.train_loop.batches_done = done
        if mixes_seen_images(runner, meta['epoch']):
            runner.logger.warning(
                'CachedMosaic and CachedMixUp start with empty caches: the run continues with '
                'other mixed images.')

    def _layout(self, runner: Runner) -> Dict[str, int]:
        loader = runner.train_dataloader
        batch_size = getattr(loader.batch_sampler, 'batch_size', loader.batch_size)
        return dict(world_size=get_dist_info()[1], batches=len(loader), batch_size=batch_size)


def mixes_seen_images(runner: Runner, epoch: int) -> bool:
    """Return whether the training pipeline in this epoch has a transform with a cache."""
    pipeline = getattr(runner.train_dataloader.dataset, 'pipeline', None)
    return has_cache(pipeline) and not any(
        getattr(hook, 'switch_epoch', math.inf) <= epoch for hook in runner.hooks)


def has_cache(transform: Any) -> bool:
    """Return whether a transform, or a transform inside it, keeps earlier images."""
    return hasattr(transform, 'results_cache') or any(
        map(has_cache, getattr(transform, 'transforms', None) or ()))
