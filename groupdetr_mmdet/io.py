"""Files that are written whole or not at all, and directories that one training uses at a time."""
import os
import stat
from pathlib import Path
from typing import ContextManager, Optional, Sequence, Union

from filelock import FileLock, Timeout

from .errors import ConfigError

INCOMPLETE = '.incomplete'  # suffix of a file that is being written
LOCK = '.groupdetr.lock'
LOCK_SECONDS = 10.  # loading workers of a training that was killed end 5 seconds after it


def write_atomically(path: Union[str, Path], data: bytes) -> None:
    """Write a file so that its name holds the old content or the new, and never a part.

    Its directory is made where it is missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}{INCOMPLETE}')
    try:
        with part.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # a full disk, say: give the space back
        part.unlink(missing_ok=True)
        error.filename = str(path)  # no disk says what did not fit
        raise
    if hasattr(os, 'O_DIRECTORY'):  # let a power cut keep the new name, too
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def remove_abandoned(folder: Union[str, Path]) -> None:
    """Remove what processes of this machine that are gone left half-written in a folder."""
    for part in Path(folder).glob(f'*{INCOMPLETE}'):
        pid = part.name[:-len(INCOMPLETE)].rsplit('.', 1)[-1]
        if not (pid.isdigit() and is_running(int(pid))):
            part.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether there is a process with an id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def irregular(path: Union[str, Path]) -> str:
    """What is at a path instead of a file: a folder, or what a reader would wait on for ever.

    Returns:
        str: Such as 'a folder' or 'a named pipe'; '' for a file, or where nothing is.
    """
    if os.path.isfile(path) or not os.path.exists(path):
        return ''
    mode = os.stat(path).st_mode
    kinds = {stat.S_ISFIFO: 'a named pipe', stat.S_ISSOCK: 'a socket', stat.S_ISDIR: 'a folder'}
    return next((name for matches, name in kinds.items() if matches(mode)), 'a device')


def check_path(key: str, path: Optional[str], folder: bool = False) -> None:
    """Check that a file, or ``folder``, exists, unless its path is empty or a web address.

    Args:
        key (str): Config key or argument that names the path.
        path (str, optional): The path; ``~`` is expanded.
        folder (bool): Whether it must be a folder and not a file. Defaults to False.

    Raises:
        ConfigError: If it does not exist or is of another kind.
    """
    if not path or '://' in path:
        return
    place = os.path.expanduser(path)
    if not os.path.exists(place):
        raise ConfigError(f'{key}: {path} does not exist; put it there or correct {key}.')
    if folder != os.path.isdir(place) or not folder and irregular(place):
        wanted = 'folder' if folder else 'file'
        raise ConfigError(f'{key}: {path} is {irregular(place) or "a file"} and not a {wanted}: '
                          f'correct {key}.')


def check_output(key: str, path: Union[str, Path], kind: str = 'a file',
                 suffixes: Sequence[str] = ()) -> None:
    """Check, before any work, that a file can be written; its folders need not exist yet.

    Args:
        key (str): Argument that names the path.
        path (str or Path): The path.
        kind (str): Kind of file, for the message. Defaults to 'a file'.
        suffixes (Sequence[str]): Suffixes of which the name must have one; any by default.

    Raises:
        ConfigError: If it cannot be written.
    """
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise ConfigError(f'{key}: {path} is not the name of {kind}; let it end in '
                          f'{", ".join(suffixes)}.')
    if there := irregular(path or '.'):  # os.replace would replace even a device
        raise ConfigError(f'{key} {path} is {there} and must be a file: name another path.')
    folder = next(x for x in Path(path).absolute().parents if os.path.lexists(x))
    if not folder.is_dir():
        raise ConfigError(f'{key} {path} cannot be written, because {folder} is not a folder: '
                          'name another path.')
    if not os.access(folder, os.W_OK):
        raise ConfigError(f'{key} {path} cannot be written, because {folder} is read-only: name '
                          'another path, or correct its permissions.')


def lock_work_dir(work_dir: Union[str, Path]) -> ContextManager:
    """Keep a work directory, which is made, for this training until the block ends.

    The system gives the lock back when the process ends, however it ends.

    Raises:
        ConfigError: If another training uses the directory.
    """
    path = Path(work_dir, LOCK)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(path).acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise ConfigError(
            f'--work-dir {work_dir} is in use by another training: wait for its end, or name '
            f'another --work-dir. If no training runs there, remove {path}.') from error
