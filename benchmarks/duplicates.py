"""Measure what duplicates cost: AP of detections as they are, and without those that overlap a
better one of their class."""
import argparse
import contextlib
import io
from itertools import groupby
from operator import itemgetter
from typing import Any, Dict, List

import cv2
import numpy as np
from mmengine.fileio import load
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from groupdetr_mmdet.analysis.agreement import is_correct
from groupdetr_mmdet.commands.agreement import read_annotations
from groupdetr_mmdet.commands.cli import end_mistakes
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.preflight import check_path

IOU_THR = 0.5  # of non-maximum suppression
Results = List[Dict[str, Any]]


def without_duplicates(results: Results) -> Results:
    """Leave out what overlaps a better detection of its class in its image."""
    kept = []
    by_image = itemgetter('image_id')
    for _, found in groupby(sorted(results, key=by_image), by_image):
        found = list(found)
        boxes, scores, labels = (
            [x[name] for x in found] for name in ('bbox', 'score', 'category_id'))
        rows = cv2.dnn.NMSBoxesBatched(boxes, scores, labels, 0., IOU_THR)
        kept += [found[row] for row in rows]
    return kept


def average_precision(results: Results, coco: COCO) -> float:
    """COCO's AP of boxes."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(coco, coco.loadRes([dict(x) for x in results]), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.duplicates', description=__doc__)
    parser.add_argument('results', metavar='RESULTS', help='results.json of groupdetr predict '
                        '--score-thr 0')
    parser.add_argument('ann_file', metavar='ANN_FILE', help='COCO annotations of its images')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='of the detections that are counted (default: %(default)s)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_path('RESULTS', args.results)
    coco, results = read_annotations(args.ann_file), load(args.results)
    if not results:
        raise ConfigError(f'RESULTS {args.results} has no detection: predict with --score-thr 0.')
    sure = [x for x in results if x['score'] >= args.score_thr]
    num_found = max(1, np.count_nonzero(is_correct(sure, coco)[0]))
    print(f'AP {average_precision(results, coco):.3f}, '
          f'without duplicates {average_precision(without_duplicates(results), coco):.3f}, '
          f'{len(sure) / num_found:.2f} detections for each object found')


if __name__ == '__main__':
    end_mistakes(main)
