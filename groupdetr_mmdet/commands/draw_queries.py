"""Draw the queries of every group: the matched queries of each object, the detections of the kept
group, and of all groups with joint self-attention."""
import argparse

from mmdet.registry import DATASETS, MODELS
from mmengine.device import get_device

from ..analysis.plots import prepare_picture
from ..analysis.query_plots import draw_queries
from ..checkpoints.loading import load_weights
from ..checkpoints.reading import read_checkpoint
from ..errors import ConfigError
from ..config import check_groups
from .common import add_inference_arguments, load_inference_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_inference_arguments(parser)
    parser.add_argument('--images', type=int, nargs='+', default=[0, 1], metavar='I',
                        help='indices of images in the test data set (default: 0 1)')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='least score of a detection (default: %(default)s)')
    parser.add_argument('--max-objects', type=int, default=4, metavar='N',
                        help='number of objects to draw the queries of (default: %(default)s)')
    parser.add_argument('--out', default='queries.png',
                        help='picture to write, .png, .svg, .pdf or .jpg (default: %(default)s)')


def main(args: argparse.Namespace) -> None:
    prepare_picture(args.out)
    cfg = load_inference_config(args)
    check_groups('CONFIG', cfg.model)
    model = MODELS.build(cfg.model)
    load_weights(model, read_checkpoint(args.checkpoint), args.checkpoint)
    model = model.to(get_device()).eval()
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    wrong = [index for index in args.images if index not in range(len(dataset))]
    if wrong:
        raise ConfigError(f'--images: {wrong[0]} is not one of the {len(dataset)} images of '
                          f'test_dataloader; choose 0 to {len(dataset) - 1}.')
    draw_queries(model, dataset, args.out, args.images, args.score_thr, args.max_objects)
    print('Wrote', args.out)
