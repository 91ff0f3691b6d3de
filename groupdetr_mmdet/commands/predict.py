"""Detect objects in images. Writes pictures to DIR/vis and all detections to DIR/results.json, in
COCO's results format. Skips unreadable images, and then ends with status 1."""
import argparse
import json
import os.path as osp
import sys
from pathlib import Path
from typing import Dict, List

import torch
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from rich.progress import track

from ..deploy.inference import CocoIds, Inferencer, filtered, find_images, find_labels
from ..errors import ConfigError, first_line
from ..io import check_output, write_atomically
from .common import add_inference_arguments, load_inference_config, positive

# Formats that OpenCV reads, and writes in color
PICTURE_SUFFIXES = set(IMG_EXTENSIONS) - {'.pgm'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('inputs', nargs='+', metavar='INPUT',
        help='images, folders of images, or patterns such as "photos/**/*.jpg"')
    add_inference_arguments(parser)
    add('--out', required=True, metavar='DIR', help='directory for the results')
    add('--score-thr', type=float, default=0.3, metavar='SCORE', help='least score of a '
        'detection, in pictures and results; for an evaluation set 0 (default: %(default)s)')
    add('--classes', nargs='+', default=[], metavar='NAME', help='classes to keep (default: all)')
    add('--device', help='such as cpu or cuda:0 (default: the best device)')
    add('--batch-size', type=positive, default=1, help='images of a batch (default: 1)')
    add('--ann-file', help='COCO annotations with the ids of these images and of the categories')
    add('--no-vis', action='store_true', help='draw no pictures')


def picture_names(paths: List[str], folder: Path) -> Dict[str, str]:
    """Return a picture's name for every image, in the images' folders, some with .jpg added."""
    root = osp.commonpath([osp.dirname(osp.abspath(path)) for path in paths])
    names = {path: str(folder / osp.relpath(osp.abspath(path), root)) for path in paths}
    taken = set(names.values())
    for path, name in names.items():
        if osp.splitext(name)[1].lower() not in PICTURE_SUFFIXES:
            while name in taken:  # by the image itself, or by NAME.jpg
                name += '.jpg'
            names[path] = name
            taken.add(name)
    return names


def main(args: argparse.Namespace) -> None:
    if not 0 <= args.score_thr <= 1:
        raise ConfigError(f'--score-thr {args.score_thr} must be 0 to 1.')
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f'--device {args.device}: {first_line(error)}.') from error
    paths = find_images(args.inputs)
    out, results = Path(args.out), []
    pictures = {} if args.no_vis else picture_names(paths, out / 'vis')
    for path in (out / 'results.json', *pictures.values()):
        check_output('--out', path)
    cfg = load_inference_config(args)
    inferencer = Inferencer(cfg, args.checkpoint, args.device)
    labels = find_labels(args.classes, inferencer.classes)
    ids = CocoIds(inferencer.classes, paths, args.ann_file)
    batches = [paths[i:i + args.batch_size] for i in range(0, len(paths), args.batch_size)]
    for batch in track(batches, description='Detecting'):
        for path, sample in inferencer.detect(batch):
            sample.pred_instances = filtered(sample.pred_instances, args.score_thr, labels)
            results += ids.results(path, sample.pred_instances)
            if not args.no_vis:
                inferencer.draw(path, sample, pictures[path])
    write_atomically(out / 'results.json', json.dumps(results).encode())
    num_done = len(paths) - len(inferencer.failed)
    print(f'Found {len(results)} objects in {num_done} images; wrote {out / "results.json"}' +
          (f' and pictures in {out / "vis"}' if num_done and not args.no_vis else ''))
    for path, reason in inferencer.failed.items():
        print(f'skipped {path}: {reason}', file=sys.stderr)
    if inferencer.failed:
        sys.exit(1)
