"""Errors that a user's mistake raises."""


class ConfigError(ValueError):
    """A mistake in a config or its data, told in one sentence.

    The sentence names the value, the config key and the fix. The tools print it without a
    traceback and exit with status 2.
    """
