"""Files that are written whole or not at all."""
import os
import stat
from pathlib import Path
from typing import Union

INCOMPLETE = '.incomplete'  # suffix of a file that is being written


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
