"""Checkpoints that survive a kill at any moment, also while they are being written."""
import logging
import os
import zipfile
from collections import deque
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from ..errors import ConfigError
from ..host.files import INCOMPLETE, remove_abandoned, write_atomically
from ..host.processes import unwrapped
from .fine_tuning import CLASS_LAYERS
from .named import POINTER, named_checkpoint
from .reading import is_whole, read_file

STOPPED = 'stopped_checkpoint'  # in the message hub: written because the run had to stop


def latest_whole_checkpoint(work_dir: Union[str, Path]) -> Optional[str]:
    """Find the checkpoint from which ``--resume`` loses least, None where no whole one is.

    It is the one that ``last_checkpoint`` names, unless a later one was written after
    ``last_checkpoint`` was. Where the named one is missing or cut short, it is the furthest whole
    checkpoint in the directory, and in the directory of the named one.
    """
    pointer = Path(work_dir, POINTER)
    named = named_checkpoint(work_dir)
    folders = {Path(work_dir)} | ({named.parent} if named else set())
    files = [file for folder in folders if folder.is_dir() for file in folder.iterdir()
             if file.is_file() and not file.name.endswith(INCOMPLETE)]
    latest = None
    if named:
        written = pointer.stat().st_mtime_ns
        latest = furthest_whole(
            [named] + [file for file in files if file.stat().st_mtime_ns > written])
    return latest or furthest_whole(files)


def furthest_whole(files: Iterable[Path]) -> Optional[str]:
    """Path of the whole checkpoint with most iterations, or None where no file is one."""
    ranked = sorted((rank, str(file)) for file, rank in
                    ((file, training_progress(file)) for file in files) if rank)
    return next((file for _, file in reversed(ranked) if is_whole(file)), None)


def training_progress(path: Union[str, Path]) -> Optional[Tuple[bool, int]]:
    """What a resumed run would have of a checkpoint, to be compared; None for any other file.

    Returns:
        Tuple[bool, int] or None: Whether it has the optimizer's state (a best checkpoint has
        not), and its number of iterations.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        checkpoint = read_file(str(path), mmap=True)
        return 'optimizer' in checkpoint, checkpoint['meta']['iter']
    except Exception:  # whatever stops it from being read stops it from being resumed
        return None


def repair_pointer(work_dir: Union[str, Path]) -> None:
    """Let ``last_checkpoint`` name the latest whole checkpoint, and log it if it did not.

    Raises:
        ConfigError: If it names a checkpoint and there is no whole one.
    """
    named = named_checkpoint(work_dir)
    latest = latest_whole_checkpoint(work_dir)
    if latest is None and named:
        raise ConfigError(
            f'{Path(work_dir, POINTER)} names {named}, which is missing or cut short, and there '
            f'is no other whole checkpoint to resume: bring it back, or remove {POINTER} to train '
            f'from the start.')
    if latest is None:
        print_log(f'{work_dir} has no checkpoint to resume: the training starts at its beginning.',
                  logger='current', level=logging.WARNING)
    elif named is None or str(named) != latest:
        print_log(f'{POINTER} names {named or "nothing"}, which is missing, cut short or not the '
                  f'latest: resuming from {latest}.', logger='current', level=logging.WARNING)
        write_atomically(Path(work_dir, POINTER), latest.encode())


class AtomicLocalBackend(LocalBackend):
    """Local files, written whole or not at all."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write bytes to a file by :func:`write_atomically`."""
        write_atomically(filepath, obj)


register_backend('atomic_local', AtomicLocalBackend, force=True)


class HoldRemovals:
    """A file backend that notes what it is asked to remove.

    Args:
        backend (BaseStorageBackend): Does everything else.

    Attributes:
        removals (List[str]): The paths that were to be removed.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.removals: List[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        """Note a path that is to be removed."""
        self.removals.append(path)

    rmtree = remove


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """``CheckpointHook`` whose run can be killed at any moment and resumed.

    Local checkpoints appear whole, under their final name, or not at all. A checkpoint is removed
    only after the one that takes its place is on the disk, so there is one more of them for a
    moment. What a killed run left half-written is removed when the next one starts. ``--resume``
    passes over checkpoints that another hook left cut short, and writes ``last_checkpoint`` anew
    where it is empty or names no whole one.

    Arguments and file names are those of :class:`mmengine.hooks.CheckpointHook`. With
    :mod:`.exact`, as the commands add it, a resumed run continues as if it had never stopped, also
    from a checkpoint inside an epoch. Without it a resumed ``EpochBasedTrainLoop`` starts at the
    beginning of an epoch, with other random numbers, and with ``by_epoch=False`` the epoch of the
    checkpoint is run again. A validation that was interrupted is not repeated, and if it was
    interrupted while it replaced the best checkpoint, both may stay. What ``published_keys`` asks
    for is written by the parent.
    """

    def before_run(self, runner: Runner) -> None:
        """Make sure that the runner is about to resume from a whole checkpoint.

        Raises:
            ConfigError: If the checkpoint to resume from is missing or cut short, and no other
                may take its place.
        """
        if not runner._resume:
            return
        path = runner._load_from
        if path is None:  # the runner resumes from what `last_checkpoint` names
            if is_main_process():
                repair_pointer(runner.work_dir)
            barrier()
        elif os.path.isfile(path) and not is_whole(path):
            raise ConfigError(
                f'--resume: {path} is cut short, damaged, or no checkpoint: name another one, or '
                f'none to resume from the latest whole one in {runner.work_dir}.')

    def after_load_checkpoint(self, runner: Runner, checkpoint: Dict[str, Any]) -> None:
        """Go on in the same order of images, and refuse what misfits the optimizer's state.

        A run whose config says no seed drew one. mmengine goes on with it, but for the sampler,
        which was made before the checkpoint was read.

        Raises:
            ConfigError: If a parameter has another shape in the checkpoint, as with another K.
        """
        if not runner._resume or 'optimizer' not in checkpoint:
            return
        loader = runner.train_dataloader
        sampler = getattr(loader.batch_sampler, 'sampler', loader.sampler)
        if hasattr(sampler, 'seed'):
            sampler.seed = checkpoint['meta'].get('seed', sampler.seed)
        model = unwrapped(runner.model)
        for name, parameter in model.named_parameters():
            saved = checkpoint['state_dict'].get(name, parameter)
            if saved.shape != parameter.shape:
                raise ConfigError(
                    f'--resume: {name} has shape {tuple(saved.shape)} in the checkpoint and '
                    f'{tuple(parameter.shape)} in the model, and the optimizer cannot go on with '
                    f'it: resume with the {key_of(name, model)} of the checkpoint, or start a new '
                    'run from it with load_from.')

    def before_train(self, runner: Runner) -> None:
        """Prepare directories and bookkeeping, and clear away what a killed run left."""
        self._use_atomic_backend(runner)
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            # The parent's has a maximal length, and forgets the oldest when it is to be removed.
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)
        if is_main_process():
            for folder in {runner.work_dir, str(self.out_dir)}:
                remove_abandoned(folder)
        self._announce_repeated_iterations(runner)

    def _use_atomic_backend(self, runner: Runner) -> None:
        out_dir = runner.work_dir if self.out_dir is None else self.out_dir
        backend = get_file_backend(out_dir, backend_args=self.backend_args)
        if self.file_client_args is None and type(backend) is LocalBackend:
            self.backend_args = dict(backend='atomic_local')

    def _announce_repeated_iterations(self, runner: Runner) -> None:
        loop = runner.train_loop
        done = runner.iter % len(loop.dataloader)
        resumable = getattr(loop, 'batches_done', 0) == done  # or exactly at the end of an epoch
        if isinstance(loop, EpochBasedTrainLoop) and done and not resumable:
            runner.logger.warning(
                f'The checkpoint lies {done} iterations inside epoch {runner.epoch + 1}, which '
                f'starts again: with by_epoch=True in default_hooks.checkpoint a resumed run '
                f'repeats nothing.')

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: Dict[str, Any]) -> None:
        """Save a checkpoint, then remove the one that it replaces.

        The checkpoint also names the one that it replaces: if the run is killed before that one
        is removed, the resumed run does it.
        """
        kept = self.max_keep_ckpts
        self.max_keep_ckpts = kept + (kept > 0)  # else the parent would remove first
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = kept
        while self.max_keep_ckpts > 0 and len(self.keep_ckpt_ids) > self.max_keep_ckpts:
            self._remove(self.file_backend.join_path(
                self.out_dir, self.filename_tmpl.format(self.keep_ckpt_ids.popleft())))
        stopped = runner.message_hub.runtime_info.pop(STOPPED, None)
        if stopped and stopped != self.last_ckpt:
            self._remove(stopped)

    def save_now(self, runner: Runner) -> str:
        """Save a checkpoint out of the usual order, as when the run has to stop; return its path.

        It goes when the resumed run has written its next one.
        """
        filename = f'iter_{runner.iter + 1}.pth'
        path = self.file_backend.join_path(self.out_dir, filename)
        if self.last_ckpt != path:
            self.last_ckpt = path
            runner.message_hub.update_info(STOPPED, path)
            runner.save_checkpoint(self.out_dir, filename, self.file_client_args, by_epoch=False,
                                   backend_args=self.backend_args, **self.args)
        if is_main_process():
            write_atomically(Path(runner.work_dir, POINTER), path.encode())
        return path

    def _save_best_checkpoint(self, runner: Runner, metrics: Dict[str, float]) -> None:
        """Save the best checkpoints, then remove those that they replace."""
        held = self.file_backend = HoldRemovals(self.file_backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = held.backend
        infos = runner.message_hub.runtime_info.values()
        in_use = {info for info in infos if isinstance(info, str)}
        for path in held.removals:
            if path not in in_use:
                self._remove(path)

    def _remove(self, path: str) -> None:
        own = os.path.dirname(os.path.abspath(path)) == os.path.abspath(self.out_dir)
        if not is_main_process() or not own:  # the run that is resumed may have had another folder
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's checkpoints are directories
            self.file_backend.rmtree(path)


def key_of(parameter: str, model: nn.Module) -> str:
    """What in the config says the shape of a parameter."""
    if CLASS_LAYERS.search(parameter):
        return 'num_classes'
    of_groups = dict(model.group_parameters()) if hasattr(model, 'group_parameters') else {}
    return 'num_queries and num_query_groups' if parameter in of_groups else 'model'


def announce_new_start(work_dir: Union[str, Path]) -> None:
    """Say that a run which does not resume will write over the checkpoints of an earlier one."""
    latest = latest_whole_checkpoint(work_dir)
    if latest:
        print(f'{work_dir} has checkpoints of an earlier run, the latest {latest}. This run '
              'starts anew and writes over those of the same name; --resume would continue it, '
              'and another --work-dir would keep it.', flush=True)
