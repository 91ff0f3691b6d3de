"""Messages to a user: errors of one sentence, and warnings."""
import functools
import logging
import traceback

from mmengine.logging import print_log


class ConfigError(ValueError):
    """A user's error in a config or its data: one sentence with the value, the key and the fix.

    Commands print it without a traceback and exit with status 2.
    """


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning once per process."""
    print_log(message, logger='current', level=logging.WARNING)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the condition of a bare assertion."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    lines = str(text).strip().splitlines()
    if not lines and isinstance(error, AssertionError) and error.__traceback__:
        lines = [traceback.extract_tb(error.__traceback__)[-1].line or '']
    return (lines[0] if lines and lines[0] else type(error).__name__)[:300].rstrip(' .:')
