"""Atomic writes, checks of paths, and locks of work directories."""
import os
import tempfile
from pathlib import Path
from typing import ContextManager, Optional, Sequence, Union

from filelock import FileLock, Timeout

from .errors import ConfigError

INCOMPLETE = '.incomplete'  # suffix of unfinished files
LOCK = '.groupdetr.lock'
LOCK_SECONDS = 1.  # loading workers of a killed training hold the lock half a second longer


def write_atomically(path: Union[str, Path], data: bytes) -> None:
    """Write a file whole or not at all; missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}{INCOMPLETE}')
    try:
        with part.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # such as a full disk
        part.unlink(missing_ok=True)
        error.filename = str(path)  # the system's error names no file
        raise
    if hasattr(os, 'O_DIRECTORY'):  # so that the new name survives a power cut
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def remove_abandoned(folder: Union[str, Path]) -> None:
    """Remove unfinished files in a folder whose processes, on this machine, have ended."""
    for part in Path(folder).glob(f'*{INCOMPLETE}'):
        try:
            os.kill(int(part.name.split('.')[-2]), 0)  # raises if no process has this id
        except PermissionError:
            pass  # the process belongs to another user
        except (OSError, ValueError, OverflowError):
            part.unlink(missing_ok=True)


def irregular(path: Union[str, Path]) -> str:
    """Return 'a folder' or 'a pipe or a device', or '' for a file or a missing path."""
    if os.path.isfile(path) or not os.path.exists(path):
        return ''
    return 'a folder' if os.path.isdir(path) else 'a pipe or a device'


def check_path(key: str, path: Optional[str], folder: Optional[bool] = False) -> None:
    """Check that ``path`` is a file, with ``folder`` a folder, with ``folder=None`` either.

    Empty paths and addresses (``https://...``) pass.

    Raises:
        ConfigError: If it does not exist or is of another kind. The message names ``key``.
    """
    if not path or '://' in path:
        return
    place = os.path.expanduser(path)
    if not os.path.exists(place):
        raise ConfigError(f'{key}: {path} does not exist; put it there or correct {key}.')
    wanted, found = 'a folder' if folder else 'a file', irregular(place) or 'a file'
    if found != wanted and not (folder is None and found == 'a folder'):
        raise ConfigError(f'{key}: {path} is {found} and not {wanted}: correct {key}.')


def check_output(key: str, path: Union[str, Path], kind: str = 'a file',
                 suffixes: Sequence[str] = ()) -> None:
    """Check, before any work, that a file can be written; folders may be missing.

    Raises:
        ConfigError: If the path is no file, cannot be written, or has none of ``suffixes``, which
            the message calls ``kind``.
    """
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise ConfigError(f'{key}: {path} is not the name of {kind}: use a name that ends in '
                          f'{", ".join(suffixes)}.')
    if found := irregular(path or '.'):  # os.replace would replace even a device
        raise ConfigError(f'{key} {path} is {found} and must be a file: name another path.')
    folder = next(x for x in Path(path).absolute().parents if os.path.lexists(x))
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f'{key} {path} cannot be written ({folder}: {error.strerror}): name '
                          'another path.') from error


def check_new_folder(key: str, path: Union[str, Path]) -> None:
    """Raise a ConfigError, before any work, unless a folder can be made or is empty."""
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise ConfigError(f'{key} {path} exists: name a new folder, or remove it.')
    check_output(key, Path(path, 'file'))


def lock_work_dir(work_dir: Union[str, Path]) -> ContextManager:
    """Lock a work directory, and make it, until the ``with`` block or the process ends.

    Raises:
        ConfigError: If another training uses the directory.
    """
    path = Path(work_dir, LOCK)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(path).acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise ConfigError(f'--work-dir {work_dir} is in use by another training: wait for its '
                          'end, or name another --work-dir.') from error
