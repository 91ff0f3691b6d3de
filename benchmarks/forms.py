"""Compare the forms of a deployed detector.

``speed``: PyTorch, torch.compile, and ONNX in onnxruntime and OpenVINO, beside mmdet's detector
with the same weights. ``differences``: detections after converting random weights from mmdet, to
mmdet and to ONNX, on images of several sizes, alone and padded to one batch. ``transformers``:
outputs after converting random weights to transformers, and from transformers.
"""
import argparse
import functools
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from mmengine.config import ConfigDict
from torch import nn

from groupdetr_mmdet.checkpoints.convert import convert
from groupdetr_mmdet.checkpoints.loading import count_classes, load_weights
from groupdetr_mmdet.checkpoints.reading import read_checkpoint
from groupdetr_mmdet.checkpoints.stock import one_group, stock_model
from groupdetr_mmdet.checkpoints.transformers_out import check_same, config_for, write_folder
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.commands.common import positive
from groupdetr_mmdet.deploy.export import (CHECKED_BATCHES, INPUTS, OUTPUTS, OnnxDetector,
                                           check_onnx, detect, export_onnx, largest_differences,
                                           onnxruntime_model, random_batch)
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.groups import decoding

from .arguments import add_config, add_running, load_config, prepare
from .cases import Case, build_model, build_random
from .measure import CPU, describe_machine, seconds_of, take_turns
from .report import print_table, write_record

MODELS, RUNTIMES = ('stock', 'ours'), ('pytorch', 'torch.compile', 'onnxruntime', 'openvino')
HEADER = ('runtime', 'batch', 'model', 'latency ms', 'images/s', 'time / stock')
Variant = Tuple[str, int, str]  # runtime, batch size, model
CONFIGS = (
    'group_cond_detr_r50_12e', 'group_dab_detr_r50_12e', 'group_dn_detr_r50_12e',
    'group_deformable_detr_r50_12e', 'group_deformable_detr_refine_two_stage_r50_12e',
    'group_dino_4scale_r50_12e', 'group_deformable_detr_demo', 'group_dino_demo',
    'group_dab_deformable_detr_demo', 'group_mask2former_demo')
FORMS = ('in', 'out', 'onnxruntime', 'OpenVINO')
IN_TRANSFORMERS = (
    'group_cond_detr_r50_12e', 'group_dab_detr_r50_12e', 'group_deformable_detr_r50_12e',
    'group_deformable_detr_refine_r50_12e', 'group_deformable_detr_refine_two_stage_r50_12e',
    'group_mask2former_demo')
PREPROCESSING = dict(mean=[0] * 3, std=[255] * 3, channels='RGB',
                     resize=dict(scale=None, keep_ratio=False))
NOISE = .02  # on all weights of the head, so that queries and classes differ
Differences = Dict[str, float]


@functools.cache
def openvino_core() -> Any:
    """Return the only core of this process.

    OpenVINO allocates a signal stack for the main thread, and frees it with the last core: if
    another thread collects that core as garbage, the next signal ends Python.
    """
    import openvino
    return openvino.Core()


def openvino_model(path: str, num_threads: int = 0) -> Callable:
    """Load an ONNX file in OpenVINO with float32, as ``onnxruntime_model``.

    By default OpenVINO uses bfloat16 if the processor has it.
    """
    model = openvino_core().compile_model(path, 'CPU', {
        'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': num_threads})
    pick = itemgetter(*OUTPUTS)
    return lambda *inputs: pick(model(dict(zip(INPUTS, inputs))))


def build_models(args: argparse.Namespace) -> Dict[str, nn.Module]:
    """Build our detector, and mmdet's with the weights of the kept group."""
    cfg = load_config(args.config, args.cfg_options)
    stock, ours = (build_model(cfg, Case(
        'inference', name, None, cfg.model.num_query_groups, cfg.model.num_queries)).eval()
        for name in MODELS)
    if args.checkpoint:
        load_weights(ours, read_checkpoint(args.checkpoint), args.checkpoint)
    stock.load_state_dict(ours.stock_state_dict())
    stock.bbox_head.test_cfg = ours.bbox_head.test_cfg  # no more detections than queries can make
    return dict(stock=stock, ours=ours)


def make_run(runtime: str, detector: nn.Module, folder: str) -> Callable:
    """Return a function that detects objects in a batch of :func:`random_batch`."""
    if runtime == 'pytorch':
        return lambda images, sizes: detect(detector, images, sizes.tolist())
    if runtime == 'torch.compile':
        return torch.compile(OnnxDetector(detector), dynamic=False)
    path = Path(folder, f'{type(detector).__name__}.onnx')
    if not path.exists():
        export_onnx(detector, path, {})
    load = dict(onnxruntime=onnxruntime_model, openvino=openvino_model)[runtime]
    run = load(str(path), torch.get_num_threads())
    return lambda *batch: run(*(x.numpy() for x in batch))


def make_runs(args: argparse.Namespace, models: Dict[str, nn.Module],
              folder: str) -> Dict[Variant, Callable[[], Any]]:
    """Prepare all variants; for each batch size, stock runs right before ours."""
    detectors = {(runtime, name): make_run(runtime, models[name], folder)
                 for runtime in args.runtimes for name in MODELS}
    return {(runtime, n, name): functools.partial(
                detectors[runtime, name], *random_batch([tuple(args.image_size)] * n))
            for runtime in args.runtimes for n in args.batch_sizes for name in MODELS}


def table_rows(seconds: Dict[Variant, List[float]]) -> List[tuple]:
    """Return median times, and the median ratio of ours to stock in the same round."""
    rows = []
    for (runtime, n, name), own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds[runtime, n, 'stock'])]
        median = statistics.median(own)
        rows.append((runtime, n, name, f'{1e3 * median:.1f}', f'{n / median:.2f}',
                     f'{statistics.median(ratios):.3f}'))
    return rows


def measure_speed(args: argparse.Namespace) -> None:
    prepare(args)
    machine = describe_machine(CPU)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = make_runs(args, build_models(args), folder)
        seconds = take_turns({variant: functools.partial(seconds_of, run)
                              for variant, run in runs.items()}, args.rounds, 2)
    rows = table_rows(seconds)
    print_table(str(machine), HEADER, rows)
    if args.json:
        write_record(args.json, 'benchmarks.forms', dict(
            machine=machine, header=HEADER, rows=rows))


@torch.no_grad()
def build(model: ConfigDict) -> nn.Module:
    """Build a detector with random weights."""
    detector = build_random(model).eval()
    for parameter in getattr(detector, 'bbox_head', detector).parameters():
        parameter += NOISE * torch.randn_like(parameter)
    return detector


def differences(model: ConfigDict) -> Dict[str, Optional[Differences]]:
    """Compare a detector with each of ``FORMS``; None where there is no such form.

    Where mmdet has no such detector, the weights are of our detector without groups.
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
        without.load_state_dict(convert(dict(state_dict=detector.state_dict()), model, to='mmdet',
                                        query_group=group).state_dict)
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
    """Return the largest differences of two detectors, in the better half of the detections.

    The other detections may be behind the second detector's limit of detections.
    """
    found = []
    for sizes in CHECKED_BATCHES:
        images, _ = random_batch(sizes)
        for a, b, size in zip(detect(first, images, sizes), detect(second, images, sizes), sizes):
            a, b = (x[x.scores.argsort(descending=True)] for x in (a, b))
            found.append(largest_differences(a[:len(a) // 2], b, max(size)))
    return {key: max(x[key] for x in found) for key in found[0]}


def transformers_differences(model: ConfigDict) -> List[Differences]:
    """Compare a detector with transformers' own of its weights, and with its own of theirs."""
    import transformers
    if 'neck' in model:
        model.neck.bias = True  # as theirs
    detector = build(ConfigDict(one_group(model)))
    classes = [str(i) for i in range(count_classes(detector.state_dict()))]
    with tempfile.TemporaryDirectory() as folder:
        out, theirs = Path(folder, 'out'), Path(folder, 'in')
        left = write_folder(out, detector, classes, PREPROCESSING, '')
        config = config_for(detector, classes)
        task = 'ObjectDetection' if 'bbox_head' in model else 'UniversalSegmentation'
        other = getattr(transformers, f'AutoModelFor{task}').from_config(config)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter += NOISE * torch.randn_like(parameter)
        other.save_pretrained(theirs)
        load_weights(detector, read_checkpoint(theirs), str(theirs))
        return [left, check_same(detector, other)]


def measure_transformers(args: argparse.Namespace) -> None:
    rows = []
    for config in args.configs:
        with redirect_stdout(sys.stderr):
            measured = transformers_differences(load_config(config).model)
        rows.append((Path(config).stem, *(
            ', '.join(f'{x:.0e}' for x in found.values()) for found in measured)))
    print_table('Largest differences of scores, and of boxes in parts of the image, or of masks',
                ('config', 'out', 'in'), rows)


def cell(found: Optional[Differences]) -> str:
    if not found:
        return '-'
    others = f' ({found["swapped"]:.1%} others)' if found['swapped'] else ''
    return f'{found["pixels"]:.0e}, {found["score"]:.0e}{others}'


def measure_differences(args: argparse.Namespace) -> None:
    rows = []
    for config in args.configs:
        with redirect_stdout(sys.stderr):  # of logs, which have no place in the table
            measured = differences(load_config(config).model)
        rows.append((Path(config).stem, *map(cell, measured.values())))
    print_table('Largest differences of boxes, in pixels, and of scores', ('config', *FORMS), rows)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.forms', description=__doc__)
    commands = parser.add_subparsers(required=True)
    speed = commands.add_parser('speed', help='latency and throughput on the CPU')
    speed.set_defaults(run=measure_speed)
    add_config(speed)
    add_running(speed, rounds=10)
    speed.add_argument('checkpoint', nargs='?', help='its checkpoint; random weights by default')
    speed.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=list(RUNTIMES))
    speed.add_argument('--batch-sizes', nargs='+', type=positive, default=[1, 8])
    configs = commands.add_parser('differences', help='how far apart the detections are')
    configs.set_defaults(run=measure_differences)
    configs.add_argument('configs', nargs='*', default=CONFIGS, help='configs of our detectors, '
                         'or shipped names (default: the table of docs/checkpoints.md)')
    configs = commands.add_parser('transformers', help="how far apart transformers' detectors are")
    configs.set_defaults(run=measure_transformers)
    configs.add_argument('configs', nargs='*', default=IN_TRANSFORMERS, help='configs of our '
                         'detectors, or shipped names (default: the table of docs/checkpoints.md)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.run(args)


if __name__ == '__main__':
    end_in_one_line(main)
