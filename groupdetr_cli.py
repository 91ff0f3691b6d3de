"""``groupdetr``: the list of commands, without slow imports."""
import argparse
import sys
from typing import Optional, Sequence

# Each command is a module of `groupdetr_mmdet/commands`, with _ for -, and the docstring of the
# module is the help. Only the module of the command is imported.
COMMANDS = {
    'prepare': 'write a config for a folder of images',
    'train': 'train a detector by a config, or on a folder of images',
    'test': 'evaluate a detector',
    'predict': 'detect objects in images',
    'report': 'write a report of a run as one HTML page',
    'convert': 'convert a checkpoint of another codebase or number of groups',
    'export': 'export a detector to ONNX',
    'draw-queries': 'draw the queries of every group',
    'plot-runs': 'compare the curves of several runs',
    'make-shapes': 'generate a data set of colored shapes',
    'demo': 'train a small detector on generated images, and report',
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
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='arguments of COMMAND')
    args = parser.parse_args((sys.argv[1:] if argv is None else argv) or ['--help'])
    if sys.stderr.isatty():
        print('Loading PyTorch and MMDetection ...', file=sys.stderr, flush=True)
    from groupdetr_mmdet.commands.cli import run
    run(args.command, args.arguments, f'groupdetr {args.command}')
