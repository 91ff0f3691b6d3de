"""Measure latency and throughput of one group on the CPU, beside mmdet's detector with the same
weights: by PyTorch, by torch.compile, and by the runtimes that read the ONNX file."""
import argparse
import functools
import statistics
import tempfile
import time
from operator import itemgetter
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import nn

from groupdetr_mmdet.checkpoints.loading import load_weights
from groupdetr_mmdet.checkpoints.reading import read_checkpoint
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.deploy.export import (INPUTS, OUTPUTS, OnnxDetector, detect, export_onnx,
                                           onnxruntime_model, random_batch)

from .arguments import load_config, make_parser, positive, prepare
from .cases import Case, build_model
from .measure import describe_machine, take_turns
from .report import print_table, write_record

MODELS, RUNTIMES = ('stock', 'ours'), ('pytorch', 'torch.compile', 'onnxruntime', 'openvino')
HEADER = ('runtime', 'batch', 'model', 'latency ms', 'images/s', 'time / stock')
Variant = Tuple[str, int, str]  # runtime, batch size, model


@functools.cache
def openvino_core() -> Any:
    """The one core of this process.

    OpenVINO gives the main thread a stack for its signals, and frees it with the last core: if
    another thread collects that core as garbage, the next signal ends Python.
    """
    import openvino
    return openvino.Core()


def openvino_model(path: str, num_threads: int = 0) -> Callable:
    """Load an ONNX file in OpenVINO, to compute in float32 as PyTorch does.

    Left alone, OpenVINO computes in bfloat16 where the processor can. Arguments and result are as
    of ``onnxruntime_model``.
    """
    model = openvino_core().compile_model(path, 'CPU', {
        'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': num_threads})
    pick = itemgetter(*OUTPUTS)
    return lambda *inputs: pick(model(dict(zip(INPUTS, inputs))))


def build_models(args: argparse.Namespace) -> Dict[str, nn.Module]:
    """Build our detector and mmdet's, which has the weights of the group that ours keeps."""
    cfg = load_config(args.config, args.cfg_options)
    stock, ours = (build_model(cfg, Case(
        'inference', name, None, cfg.model.num_query_groups, cfg.model.num_queries,
        num_objects=0)).eval() for name in MODELS)
    if args.checkpoint:
        load_weights(ours, read_checkpoint(args.checkpoint), args.checkpoint)
    stock.load_state_dict(ours.stock_state_dict())
    stock.bbox_head.test_cfg = ours.bbox_head.test_cfg  # no more detections than queries can make
    return dict(stock=stock, ours=ours)


def make_run(runtime: str, detector: nn.Module, folder: str) -> Callable:
    """Return what detects objects in a batch of :func:`random_batch`."""
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
    """Prepare all variants; of a batch size, stock runs right before ours."""
    runs: Dict[Variant, Callable[[], Any]] = {}
    for runtime in args.runtimes:
        found = {name: make_run(runtime, models[name], folder) for name in MODELS}
        runs.update(((runtime, n, name), functools.partial(
            found[name], *random_batch([tuple(args.image_size)] * n)))
            for n in args.batch_sizes for name in MODELS)
    return runs


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def table_rows(seconds: Dict[Variant, List[float]]) -> List[tuple]:
    """Return medians, and those of the ratio of ours to stock in the same round."""
    rows = []
    for (runtime, n, name), own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds[runtime, n, 'stock'])]
        median = statistics.median(own)
        rows.append((runtime, n, name, f'{1e3 * median:.1f}', f'{n / median:.2f}',
                     f'{statistics.median(ratios):.3f}'))
    return rows


def parse_args() -> argparse.Namespace:
    parser = make_parser('benchmarks.inference', __doc__, 'config', '--image-size', '--rounds',
                         '--threads', '--json', rounds=10)
    parser.add_argument('checkpoint', nargs='?', help='its checkpoint; random weights by default')
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument('--batch-sizes', nargs='+', type=positive, default=[1, 8])
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    machine = describe_machine(prepare(args))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = make_runs(args, build_models(args), folder)
        seconds = take_turns({variant: functools.partial(seconds_of, run)
                              for variant, run in runs.items()}, args.rounds, 2, 'all variants')
    rows = table_rows(seconds)
    print_table(str(machine), HEADER, rows)
    if args.json:
        write_record(args.json, 'benchmarks.inference', dict(
            machine=machine, header=HEADER, rows=rows))


if __name__ == '__main__':
    end_in_one_line(main)
