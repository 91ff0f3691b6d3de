"""``groupdetr``: the list of commands, in a module that imports nothing slow."""
import argparse
import sys
from typing import Optional, Sequence

# Each is a module of `groupdetr_mmdet/commands`, with _ for -: its docstring is the help, its
# `add_arguments` and `main` do the rest. Only the module that runs is imported.
COMMANDS = {
    'prepare': 'write a config for a folder of images',
    'train': 'train a detector by a config, or on a folder of images',
    'test': 'evaluate a detector',
    'predict': 'detect objects in images',
    'report': 'write a report of a run as one HTML page',
    'convert': 'convert a checkpoint of another codebase, or of another number of groups',
    'export': 'export a detector to ONNX',
    'draw-queries': 'draw what the queries of every group find',
    'plot-runs': 'compare the curves of several runs',
    'make-shapes': 'generate a data set of colored shapes',
    'demo': 'train a small detector on generated images, and see what it learned',
}


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Run ``groupdetr COMMAND ...``, with the arguments of the process by default."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog='groupdetr', description='Group DETR for MMDetection.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='commands:\n' + '\n'.join(
            f'  {name:<{width}}  {what}' for name, what in COMMANDS.items()) +
        '\n\ngroupdetr COMMAND --help lists its arguments.')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help='from the list below')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='of the command')
    args = parser.parse_args((sys.argv[1:] if argv is None else argv) or ['--help'])
    if sys.stderr.isatty():
        print('Loading PyTorch and MMDetection ...', file=sys.stderr, flush=True)
    from groupdetr_mmdet.commands.cli import run
    run(args.command, args.arguments, f'groupdetr {args.command}')
