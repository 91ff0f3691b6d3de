"""The command line: which commands there are."""
import argparse
import importlib
import sys
import warnings
from typing import Optional, Sequence

import matplotlib

from .errors import end_in_one_line

# Each is a module of this room, with _ for -: its docstring is the help, its `add_arguments` and
# `main` do the rest. Only the module that runs is imported.
COMMANDS = {
    'prepare': 'write the config of a training on a folder of images',
    'train': 'train a detector on what a config says, or on a folder of images',
    'test': 'evaluate a detector',
    'predict': 'detect objects in images',
    'report': 'write a report of a training as one HTML page',
    'convert': 'convert a checkpoint of another codebase, or of another number of groups',
    'export': 'export a detector to ONNX',
    'draw-queries': 'draw what the queries of every group find',
    'plot-runs': 'compare the curves of several trainings',
    'make-shapes': 'generate a data set of colored shapes',
    'demo': 'train a small detector on generated images, and see what it learned',
}
# Warnings of libraries in every run: about pkg_resources, and about boxes at an edge
NOISE = 'pkg_resources is deprecated', 'Warning: The .* is out of bounds'


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run ``groupdetr COMMAND ...``, with the arguments of the process by default."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog='groupdetr', description='Group DETR for MMDetection.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='commands:\n' + '\n'.join(
            f'  {name:<{width}}  {what}' for name, what in COMMANDS.items()) +
        '\n\ngroupdetr COMMAND --help lists its arguments.')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help='one of those below')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='of the command')
    args = parser.parse_args((sys.argv[1:] if argv is None else argv) or ['--help'])
    run(args.command, args.arguments, f'groupdetr {args.command}')


def run(command: str, argv: Optional[Sequence[str]] = None, prog: Optional[str] = None) -> None:
    """Run one of ``COMMANDS``, with the arguments and the name of the process by default."""
    def import_and_run() -> None:
        module = importlib.import_module(f'.{command.replace("-", "_")}', __package__)
        parser = argparse.ArgumentParser(prog=prog, description=module.__doc__)
        module.add_arguments(parser)
        module.main(parser.parse_intermixed_args(argv))

    for noise in NOISE:
        warnings.filterwarnings('ignore', noise)
    matplotlib.rcParams['text.parse_math'] = False  # names may hold $
    end_in_one_line(import_and_run)
