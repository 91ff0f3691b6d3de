"""Checkpoints that survive a kill at any moment."""
import os
import zipfile
from collections import deque
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import ConfigError, warn_once
from ..io import INCOMPLETE, remove_abandoned, write_atomically
from .named import POINTER, named_checkpoint
from .reading import is_whole, load_from_local

STOPPED = 'stopped_checkpoint'  # in the message hub: checkpoint written on a signal


def latest_whole_checkpoint(work_dir: Union[str, Path]) -> Optional[str]:
    """Return the whole checkpoint with the most progress, or None.

    This is the checkpoint that ``last_checkpoint`` names, or a further checkpoint written after
    that file. If the named checkpoint is missing or truncated, all whole checkpoints in its folder
    and in ``work_dir`` count.
    """
    named = named_checkpoint(work_dir)
    folders = {Path(work_dir)} | ({named.parent} if named else set())
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir()
             if file.is_file() and not file.name.endswith(INCOMPLETE)]
    latest = None
    if named:
        written = Path(work_dir, POINTER).stat().st_mtime_ns
        latest = furthest_whole([named, *(x for x in files if x.stat().st_mtime_ns > written)])
    return latest or furthest_whole(files)


def furthest_whole(files: Iterable[Path]) -> Optional[str]:
    """Return the path of the whole checkpoint with most iterations, or None."""
    ranked = sorted((rank, str(x)) for x in files if (rank := training_progress(x)))
    return next((file for _, file in reversed(ranked) if is_whole(file)), None)


def training_progress(path: Union[str, Path]) -> Optional[Tuple[bool, int]]:
    """Return whether a checkpoint has the optimizer's state, and its iterations, or None."""
    try:
        checkpoint = zipfile.is_zipfile(path) and load_from_local(str(path), 'cpu', mmap=True)
        return 'optimizer' in checkpoint, checkpoint['meta']['iter']
    except Exception:  # an unreadable file cannot be resumed
        return None


def repair_pointer(work_dir: Union[str, Path]) -> None:
    """Let ``last_checkpoint`` name the latest whole checkpoint.

    Raises:
        ConfigError: If it names a checkpoint, and no checkpoint is whole.
    """
    named, latest = named_checkpoint(work_dir), latest_whole_checkpoint(work_dir)
    log = MMLogger.get_current_instance()
    if latest is None and named:
        raise ConfigError(f'{Path(work_dir, POINTER)} names {named}, which is missing or cut '
                          'short, and no other checkpoint is whole: bring it back, or remove '
                          f'{POINTER} to train from the start.')
    if latest is None:
        log.warning(f'{work_dir} has no checkpoint to resume: the training starts at its '
                    'beginning.')
    else:
        if str(named) != latest:
            log.warning(f'{POINTER} names {named or "nothing"}, which is missing, cut short or '
                        f'not the latest: resuming from {latest}.')
        write_atomically(Path(work_dir, POINTER), latest.encode())


class AtomicLocalBackend(LocalBackend):
    """Local files, written whole or not at all."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write ``obj`` to a file."""
        write_atomically(filepath, obj)


register_backend('atomic_local', AtomicLocalBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """``CheckpointHook`` whose run can be killed at any moment and resumed.

    Local checkpoints are written whole or not at all. A checkpoint is removed after its successor
    is on the disk. ``--resume`` skips truncated checkpoints, and corrects ``last_checkpoint``.

    Arguments and file names as for :class:`mmengine.hooks.CheckpointHook`. The commands add
    :mod:`.exact`, which resumes exactly; without it a resumed ``EpochBasedTrainLoop`` starts at
    the beginning of an epoch, with other random numbers. An interrupted validation is not
    repeated. If it was interrupted while it replaced the best checkpoint, both may stay.
    """

    # Of OpenImagesMetric and CocoPanopticMetric
    _default_greater_keys = [*CheckpointHook._default_greater_keys, 'AP', 'PQ']

    def before_run(self, runner: Runner) -> None:
        """Prepare ``--resume`` without a path; see :func:`repair_pointer`."""
        if runner._resume and runner._load_from is None:  # mmengine reads `last_checkpoint`
            if is_main_process():
                repair_pointer(runner.work_dir)
            barrier()

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Restore the sampler's seed, and so the order of images.

        mmengine restores a seed that it drew at random everywhere except in the sampler, which it
        builds before it reads the checkpoint.
        """
        meta = checkpoint['meta'] if runner._resume else {}
        if meta.get('seed') is None:
            return
        meta['seed'] = int(meta['seed'])  # Python's generator refuses NumPy's integers
        loader = runner.train_dataloader
        sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        if hasattr(sampler, 'seed') and 'optimizer' in checkpoint:
            sampler.seed = meta['seed']

    def before_train(self, runner: Runner) -> None:
        """Prepare directories and bookkeeping, and remove unfinished files of a killed run."""
        out_dir = runner.work_dir if self.out_dir is None else self.out_dir
        backend = get_file_backend(out_dir, backend_args=self.backend_args)
        if self.file_client_args is None and type(backend) is LocalBackend:
            self.backend_args = dict(backend='atomic_local')
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            # Without the parent's maximal length, which drops the oldest before it is removed.
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)
        if is_main_process():
            for folder in {runner.work_dir, str(self.out_dir)}:
                remove_abandoned(folder)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: Dict[str, Any]) -> None:
        """Save a checkpoint, then remove the checkpoint that it replaces.

        The new checkpoint also names the old, so that a resumed run removes it after a kill.
        """
        kept = self.max_keep_ckpts
        self.max_keep_ckpts = kept + (kept > 0)  # the parent would remove before it saves
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = kept
        while self.max_keep_ckpts > 0 and len(self.keep_ckpt_ids) > self.max_keep_ckpts:
            name = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            self._remove(self.file_backend.join_path(self.out_dir, name))
        stopped = runner.message_hub.runtime_info.pop(STOPPED, None)
        if stopped and stopped != self.last_ckpt:
            self._remove(stopped)

    def save_now(self, runner: Runner, step: int) -> str:
        """Save a checkpoint of a stopped run, and return its path.

        The resumed run removes it after its next checkpoint.
        """
        filename = f'iter_{runner.iter + 1}.pth'  # a new name, also in a validation
        path = self.file_backend.join_path(self.out_dir, filename)
        if self.last_ckpt != path:
            self.last_ckpt = path
            runner.message_hub.update_info(STOPPED, path)
            runner.save_checkpoint(
                self.out_dir, filename, self.file_client_args, by_epoch=False,
                meta=dict(iter=step), backend_args=self.backend_args, **self.args)
        if is_main_process():
            write_atomically(Path(runner.work_dir, POINTER), path.encode())
        return path

    def _save_best_checkpoint(self, runner: Runner, metrics: Dict[str, float]) -> None:
        """Save the best checkpoints, then remove the checkpoints that they replace.

        For 'auto' the parent takes the first metric, and raises an error if its rule is unknown.
        """
        if self.save_best == ['auto'] and not (metrics := self.ranking(metrics)):
            return
        removals: List[str] = []
        backend = self.file_backend  # of this hook alone
        backend.remove = backend.rmtree = removals.append
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            del backend.remove, backend.rmtree
        in_use = {x for x in runner.message_hub.runtime_info.values() if isinstance(x, str)}
        for path in set(removals) - in_use:
            self._remove(path)

    def ranking(self, metrics: Dict[str, float]) -> Dict[str, float]:
        """Return the metrics that can rank checkpoints, the metrics of a single class last."""
        words = [word.lower() for word in (*self.greater_keys, *self.less_keys)]
        ranking = {name: metrics[name]  # CLASS_precision is of a class
                   for name in sorted(metrics, key=lambda name: name.endswith('_precision'))
                   if self.rules != [None] or any(word in name.lower() for word in words)}
        if not ranking:
            warn_once(f'No best checkpoint is kept by {", ".join(metrics)}: set save_best and '
                      'rule of default_hooks.checkpoint.')
        return ranking

    def _remove(self, path: str) -> None:
        own = os.path.dirname(os.path.abspath(path)) == os.path.abspath(self.out_dir)
        if not is_main_process() or not own:  # never in the folder of another run
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's checkpoints are directories
            self.file_backend.rmtree(path)


def announce_new_start(work_dir: Union[str, Path]) -> None:
    """Print a warning that a new run will overwrite the checkpoints of an earlier run."""
    latest = latest_whole_checkpoint(work_dir)
    if latest:
        print(f'{work_dir} has checkpoints of an earlier run, the latest {latest}. This run '
              'starts anew and overwrites files of the same name; --resume would continue the '
              'earlier run, and another --work-dir would keep it.', flush=True)
