"""What a user is told: errors of one sentence, and warnings."""
import functools
import logging

from mmengine.logging import print_log


class ConfigError(ValueError):
    """A mistake in a config or its data, told in one sentence.

    The sentence names the value, the config key and the fix. The tools print it without a
    traceback and exit with status 2.
    """


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, once in a process."""
    print_log(message, logger='current', level=logging.WARNING)
