"""A stopped run continues as if it had not been: random numbers that depend on the step alone.

The run's seed, the process, and the place in the training seed what a step draws, and what the
transforms of an image draw. So no state of a generator, sampler or worker is saved; a run
continues at any batch, with any number of workers.
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

PROGRESS = 'groupdetr_progress'  # the key of a checkpoint
STEP, SAMPLE = 1, 2  # streams of random numbers


def seed_generators(*key: int) -> None:
    """Seed Python, NumPy and PyTorch by some numbers, on the GPU where this process uses it."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    seed = int(words[2]) << 31 | int(words[3]) >> 1
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class SeededBatch(list):
    """Indices of a batch that seed the generators, by a key, before each is loaded anywhere."""

    def __init__(self, indices: Sequence[int], key: tuple) -> None:
        super().__init__(indices)
        self.key = key

    def __iter__(self) -> Iterator[int]:
        for place, index in enumerate(super().__iter__()):
            seed_generators(*self.key, place)
            yield index

    def __reduce__(self) -> tuple:
        """Go to another process without being iterated over here."""
        return SeededBatch, (list(super().__iter__()), self.key)


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(Sampler):
    """Batches whose images draw the same random numbers in a resumed run, from any batch on.

    Arguments as for PyTorch's ``BatchSampler``, which makes the batches; the config
    ``batch_sampler`` names another class.
    """
    start = 0  # the first batch that is yielded

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False,
                 batch_sampler: Optional[dict] = None) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.batches: Any = BatchSampler(sampler, batch_size, drop_last)
        if batch_sampler is not None:
            self.batches = DATA_SAMPLERS.build(
                batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size))

    def __len__(self) -> int:
        """The number of batches of an epoch, also of one that is resumed."""
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
    """``EpochBasedTrainLoop`` that a checkpoint inside an epoch resumes at the next batch."""
    batches_done = 0  # of this epoch

    def run_epoch(self) -> None:
        """Run an epoch, or what is left of it."""
        self.dataloader.batch_sampler.start = self.batches_done
        super().run_epoch()
        self.batches_done = 0

    def run_iter(self, idx: int, data_batch: Union[dict, Sequence[dict]]) -> None:
        """Run a step; ``idx`` counts the batches that were loaded."""
        idx += self.dataloader.batch_sampler.start
        self.batches_done = idx + 1
        super().run_iter(idx, data_batch)


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Seed every step, note in checkpoints how far the epoch is, and continue there.

    With another number of processes or images in a batch, or a checkpoint without the note, the
    run continues at the start of the epoch, and the log has a warning. It has another where
    transforms mix in images that they have seen, which a checkpoint does not keep.
    """
    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, **kwargs: Any) -> None:
        """Seed the generators for this step."""
        seed_generators(STEP, runner.seed, get_dist_info()[0], runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Note the place in the epoch."""
        loop = runner.train_loop
        inside = checkpoint['meta']['epoch'] == loop.epoch
        done = getattr(loop, 'batches_done', 0) if inside else 0
        checkpoint[PROGRESS] = dict(self._layout(runner), batches_done=done)

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Continue at the place that the checkpoint notes."""
        if not (runner._resume and isinstance(checkpoint, dict) and 'meta' in checkpoint):
            return  # another hook refuses these
        layout, saved = self._layout(runner), checkpoint.get(PROGRESS)
        saved = saved if isinstance(saved, dict) else {}
        done = saved.get('batches_done')
        changes = ', '.join(f'{name} was {saved.get(name)} and is {value}'
                            for name, value in layout.items() if saved.get(name) != value)
        if not isinstance(done, int) or not changes and done not in range(layout['batches'] + 1):
            runner.logger.warning('The checkpoint does not have what an exact resumption needs: '
                                  'the run goes on with other random numbers.')
        elif changes:
            runner.logger.warning(
                f'The run goes on with other batches than before, since {changes}.')
        elif isinstance(runner.train_loop, ResumableTrainLoop):
            runner.train_loop.batches_done = done
        if mixes_seen_images(runner, checkpoint['meta']['epoch']):
            runner.logger.warning(
                'CachedMosaic and CachedMixUp begin with no images in their caches: the run goes '
                'on with other mixed images than it would have had.')

    def _layout(self, runner: Runner) -> Dict[str, int]:
        loader = runner.train_dataloader
        batch_size = getattr(loader.batch_sampler, 'batch_size', loader.batch_size)
        return dict(world_size=get_dist_info()[1], batches=len(loader), batch_size=batch_size)


def mixes_seen_images(runner: Runner, epoch: int) -> bool:
    """Whether the training pipeline has a transform with a cache, and is not switched off yet."""
    pipeline = getattr(runner.train_dataloader.dataset, 'pipeline', None)
    return has_cache(pipeline) and not any(
        getattr(hook, 'switch_epoch', math.inf) <= epoch for hook in runner.hooks)


def has_cache(transform: Any) -> bool:
    """Whether a transform, or one inside it, keeps images that it has seen."""
    return hasattr(transform, 'results_cache') or any(
        map(has_cache, getattr(transform, 'transforms', None) or ()))
