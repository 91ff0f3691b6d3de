"""Measure whether agreement among the groups tells right detections from wrong ones better than
the score: reads what `groupdetr predict --all-groups --ann-file ANN_FILE` wrote, and draws it."""
import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
from pycocotools.coco import COCO

from ..analysis.agreement import draw_agreement, is_correct, measure_agreement
from ..analysis.plots import prepare_picture, save_picture
from ..errors import ConfigError
from ..preflight import check_path
from .common import print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('results', metavar='RESULTS', help='results.json of groupdetr predict --all-groups')
    add('ann_file', metavar='ANN_FILE', help='COCO annotations of its images')
    add('--out', metavar='FILE', help='picture to write (default: agreement.png beside RESULTS)')


def read_results(path: str, coco: COCO) -> List[Dict[str, Any]]:
    """Read the results of ``predict --all-groups``, of images of the annotations."""
    check_path('RESULTS', path)
    try:
        results = json.loads(Path(path).read_text())
        np.array([[*x['bbox'], x['score']] for x in results], float).reshape(len(results), 5)
        images = {result['image_id'] for result in results if result['group_scores']}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f'RESULTS {path} does not say what the groups found ({error!r}): write '
                          'it by groupdetr predict --all-groups.') from error
    unknown = images - set(coco.getImgIds())
    if unknown:
        raise ConfigError(f'RESULTS {path} has image_id={unknown.pop()}, which ANN_FILE has not: '
                          'give groupdetr predict the same --ann-file.')
    if not results:
        raise ConfigError(f'RESULTS {path} has no detection: predict with a lower --score-thr.')
    return results


def read_annotations(path: str) -> COCO:
    """Read the file of annotations without a word of its reader."""
    check_path('ANN_FILE', path)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            coco = COCO(path)
        coco.dataset['images'], coco.dataset['annotations']
    except (ValueError, KeyError, TypeError, AssertionError, OSError) as error:
        raise ConfigError(f'ANN_FILE {path} is not in COCO format ({error!r}): name a file with '
                          'images, annotations and categories.') from error
    return coco


def main(args: argparse.Namespace) -> None:
    out = args.out or str(Path(args.results).with_name('agreement.png'))
    prepare_picture(out)
    coco = read_annotations(args.ann_file)
    results = read_results(args.results, coco)
    correct, counts = is_correct(results, coco)
    if len(np.unique(correct[counts])) < 2:
        raise ConfigError(f'RESULTS {args.results} has no right detections or no wrong ones: '
                          'there is nothing to tell apart; predict with another --score-thr.')
    measured = measure_agreement(results, coco)
    print(f'{correct[counts].sum()} of {counts.sum()} detections are right')
    print_table(('certainty', 'AUROC', 'gain over the score, 95 %', 'calibration error'), (
        (x.name, f'{x.auroc:.3f}', '{:+.3f} to {:+.3f}'.format(*x.gain),
         f'{x.calibration_error:.3f}') for x in measured))
    save_picture(draw_agreement(measured), out, dpi=110)
    print(f'Wrote {out}')
