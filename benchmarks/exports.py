"""Measure how far a detector is from its other forms: mmdet's detector whose weights came in, the
one that went out, and the ONNX file in onnxruntime and OpenVINO.

Weights are random. Boxes and scores are compared on images of several sizes, alone and padded to
one batch."""
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, Optional

import torch
from mmengine.config import ConfigDict
from torch import nn

from groupdetr_mmdet.checkpoints.convert import convert
from groupdetr_mmdet.checkpoints.stock import stock_model
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.deploy.export import (CHECKED_BATCHES, check_onnx, detect, export_onnx,
                                           largest_differences, random_batch)
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.groups import decoding

from .arguments import load_config, make_parser
from .cases import build_random
from .inference import openvino_model
from .report import print_table

CONFIGS = (
    'group_cond_detr_r50_12e', 'group_dab_detr_r50_12e', 'group_dn_detr_r50_12e',
    'group_deformable_detr_r50_12e', 'group_deformable_detr_refine_two_stage_r50_12e',
    'group_dino_4scale_r50_12e', 'group_deformable_detr_demo', 'group_dino_demo',
    'group_dab_deformable_detr_demo', 'group_mask2former_demo')
FORMS = ('in', 'out', 'onnxruntime', 'OpenVINO')
NOISE = .02  # on all weights of the head, so that queries and classes differ

Differences = Dict[str, float]


@torch.no_grad()
def build(model: ConfigDict) -> nn.Module:
    """Build a detector with random weights."""
    detector = build_random(model).eval()
    for parameter in getattr(detector, 'bbox_head', detector).parameters():
        parameter += NOISE * torch.randn_like(parameter)
    return detector


def measure(model: ConfigDict) -> Dict[str, Optional[Differences]]:
    """Compare a detector with each of ``FORMS``; None where there is no such form.

    Where mmdet has no such detector, the weights come in from one of ours without groups.
    """
    try:
        stock = stock_model(model)
    except ConfigError:
        stock = None
    found = dict.fromkeys(FORMS)
    without = build(stock or ConfigDict(model, num_query_groups=1))
    detector = build(model)
    detector.load_state_dict(convert(dict(state_dict=without.state_dict()), model).state_dict)
    found['in'] = compare(detector, without)
    detector, group = build(model), model.num_query_groups - 1
    if stock is not None:
        went = convert(dict(state_dict=detector.state_dict()), model, to='mmdet',
                       query_group=group)
        without.load_state_dict(went.state_dict)
        with decoding(range(group, group + 1)):
            found['out'] = compare(without, detector)
    if model.type != 'GroupMask2Former':
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'detector.onnx')
            found['onnxruntime'] = export_onnx(detector, path, {})
            if find_spec('openvino'):
                found['OpenVINO'] = check_onnx(str(path), detector, load=openvino_model)
    return found


@torch.no_grad()
def compare(first: nn.Module, second: nn.Module) -> Differences:
    """Find the largest differences of two detectors, in the better half of the first's detections.

    Any of the others may have just missed the second's limit of detections.
    """
    found = []
    for sizes in CHECKED_BATCHES:
        images, _ = random_batch(sizes)
        for a, b, size in zip(detect(first, images, sizes), detect(second, images, sizes), sizes):
            a, b = (x[x.scores.argsort(descending=True)] for x in (a, b))
            found.append(largest_differences(a[:len(a) // 2], b, max(size)))
    return {key: max(x[key] for x in found) for key in found[0]}


def cell(found: Optional[Differences]) -> str:
    if not found:
        return '-'
    others = f' ({found["swapped"]:.1%} others)' if found['swapped'] else ''
    return f'{found["pixels"]:.0e}, {found["score"]:.0e}{others}'


def main() -> None:
    parser = make_parser('benchmarks.exports', __doc__)
    parser.add_argument('configs', nargs='*', default=CONFIGS,
                        help='configs of our detectors, or shipped names (default: the table of '
                        'docs/checkpoints.md)')
    rows = []
    for config in parser.parse_args().configs:
        with redirect_stdout(sys.stderr):  # of logs, which have no place in the table
            measured = measure(load_config(config).model)
        rows.append((Path(config).stem, *map(cell, measured.values())))
    print_table('Largest differences of boxes, in pixels, and of scores', ('config', *FORMS), rows)


if __name__ == '__main__':
    end_in_one_line(main)
