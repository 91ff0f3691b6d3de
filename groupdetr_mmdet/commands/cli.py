"""Run a command. ``groupdetr_cli`` lists the commands, without slow imports."""
import argparse
import importlib
import warnings
from typing import Optional, Sequence

import matplotlib

from groupdetr_cli import COMMANDS, main

from .errors import end_in_one_line

__all__ = ['COMMANDS', 'main', 'run']

# Warnings of libraries in every run
NOISE = 'pkg_resources is deprecated', 'Warning: The .* is out of bounds'


def run(command: str, argv: Optional[Sequence[str]] = None, prog: Optional[str] = None) -> None:
    """Run one of ``COMMANDS``; arguments and program name default to the process's."""
    def import_and_run() -> None:
        module = importlib.import_module(f'.{command.replace("-", "_")}', __package__)
        parser = argparse.ArgumentParser(prog=prog, description=module.__doc__)
        module.add_arguments(parser)
        module.main(parser.parse_intermixed_args(argv))

    for noise in NOISE:
        warnings.filterwarnings('ignore', noise)
    matplotlib.rcParams['text.parse_math'] = False  # names may hold $
    end_in_one_line(import_and_run)
