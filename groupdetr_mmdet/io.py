"""Files that are written whole or not at all, and directories that one training uses at a time."""
import os
import tempfile
from pathlib import Path
from typing import ContextManager, Optional, Sequence, Union

from filelock import FileLock, Timeout

from .errors import ConfigError

INCOMPLETE = '.incomplete'  # suffix of a file that is being written
LOCK = '.groupdetr.lock'
LOCK_SECONDS = 1.  # the loading workers of a killed training end half a second after it


def write_atomically(path: Union[str, Path], data: bytes) -> None:
    """Write a file, in a folder that is made, so that its name never holds a part of the data."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}{INCOMPLETE}')
    try:
        with part.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # such as a full disk: give the space back
        part.unlink(missing_ok=True)
        error.filename = str(path)  # the system names no file
        raise
    if hasattr(os, 'O_DIRECTORY'):  # keep the new name in a power cut, too
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def remove_abandoned(folder: Union[str, Path]) -> None:
    """Remove what processes of this machine that have ended left half-written in a folder."""
    for part in Path(folder).glob(f'*{INCOMPLETE}'):
        try:
            os.kill(int(part.name.split('.')[-2]), 0)  # raises where no process has this id
        except PermissionError:
            pass  # it runs for another user
        except (OSError, ValueError, OverflowError):
            part.unlink(missing_ok=True)


def irregular(path: Union[str, Path]) -> str:
    """Name what is at a path in the place of a file; '' for a file, or where nothing is."""
    if os.path.isfile(path) or not os.path.exists(path):
        return ''
    return 'a folder' if os.path.isdir(path) else 'a pipe or a device'


def check_path(key: str, path: Optional[str], folder: Optional[bool] = False) -> None:
    """Check that a config key or argument names a file, or a folder; '' and addresses pass.

    ``folder=None`` allows both.

    Raises:
        ConfigError: If the path does not exist or is of another kind.
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
    """Check, before any work, that the file of an argument can be written; folders may be missing.

    Its name must have one of the suffixes, if any are given; the ConfigError calls it ``kind``.
    """
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise ConfigError(f'{key}: {path} is not the name of {kind}; let it end in '
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
    """Check, before any work, that a folder can be made, and that nothing is in it yet."""
    if os.path.lexists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise ConfigError(f'{key} {path} is there already: name a new folder, or remove it.')
    check_output(key, Path(path, 'file'))


def lock_work_dir(work_dir: Union[str, Path]) -> ContextManager:
    """Keep a work directory, which is made, for this training until the block or process ends.

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
