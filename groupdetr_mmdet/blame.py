"""Whose code an exception comes from: a library's, or this package's and a user's own.

What a library refuses of a config or a data set is told in a sentence; all else is a bug.
"""
import sys
import traceback
from types import FrameType
from typing import List, Optional

LIBRARIES = {'mmengine', 'mmcv', 'mmdet'}
BELOW = {'torch', 'numpy', 'cv2', 'PIL', 'pycocotools', *sys.stdlib_module_names}


def frames(error: BaseException) -> List[FrameType]:
    """The calls that led to an exception, the innermost last."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def failing_library(error: BaseException) -> Optional[FrameType]:
    """The innermost call of mmengine, mmcv or mmdet, with what it called of PyTorch and the like.

    Returns:
        FrameType or None: None where the exception is of other code.
    """
    for frame in reversed(frames(error)):
        package = frame.f_globals.get('__name__', '').split('.')[0]
        if package in LIBRARIES:
            return frame
        if package not in BELOW:
            return None
    return None


def first_line(error: BaseException) -> str:
    """What an exception says, in a line; of an assertion without words its condition."""
    lines = str(error).strip().splitlines()
    if not lines and isinstance(error, AssertionError):
        lines = [traceback.extract_tb(error.__traceback__)[-1].line or '']
    return (lines[0] if lines and lines[0] else type(error).__name__)[:200].rstrip(' .:')
