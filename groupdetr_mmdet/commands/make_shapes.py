"""Generate a small detection data set: shapes on textured backgrounds, in COCO format."""
import argparse

from ..data.shapes import make_shapes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument('root', nargs='?', default='data/shapes', help='folder to write')
    parser.add_argument('--num-train', type=int, default=2000, help='training images')
    parser.add_argument('--num-val', type=int, default=300, help='validation images')
    parser.add_argument('--size', type=int, default=128, help='height and width in pixels')
    parser.add_argument('--seed', type=int, default=0, help='seed of the images')


def main(args: argparse.Namespace) -> None:
    written = make_shapes(**vars(args))
    print(f'{args.root}: {"written" if written else "exists with the same settings"}')
