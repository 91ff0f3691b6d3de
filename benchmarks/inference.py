"""Measure latency and throughput of one group on the CPU, beside mmdet's detector with the same
weights: by PyTorch, by torch.compile, and by the runtimes that read the ONNX file."""
import argparse
import functools
import statistics
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from torch import nn

from groupdetr_mmdet.checkpoints.loading import load_weights
from groupdetr_mmdet.checkpoints.reading import read_checkpoint
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.deploy.export import (OnnxDetector, detect, export_onnx,
                                           onnxruntime_model, openvino_model, random_batch)
from groupdetr_mmdet.errors import ConfigError

from .arguments import load_config, make_parser, positive, prepare
from .cases import Case, build_model
from .measure import describe_machine, seconds_of, take_turns
from .report import make_table, open_console, write_record

MODELS = ('stock', 'ours')
Images = Tuple[torch.Tensor, torch.Tensor]
Run = Callable[[Images], Any]


class Variant(NamedTuple):
    """One thing to measure."""
    runtime: str
    model: str
    batch_size: int


def build_models(args: argparse.Namespace) -> Dict[str, nn.Module]:
    """Build our detector and mmdet's, which has the weights of the group that ours keeps."""
    cfg = load_config(args.config, args.cfg_options)
    cases = {name: Case('inference', name, None, cfg.model.num_query_groups,
                        cfg.model.num_queries, num_objects=0) for name in MODELS}
    models = {name: build_model(cfg, case).eval() for name, case in cases.items()}
    if args.checkpoint:
        load_weights(models['ours'], read_checkpoint(args.checkpoint), args.checkpoint)
    models['stock'].load_state_dict(models['ours'].stock_state_dict())
    # Ours asks for no more detections than its queries can make.
    models['stock'].bbox_head.test_cfg = models['ours'].bbox_head.test_cfg
    return models


# Each makes, of a detector and its ONNX file, what detects objects in a batch.


def pytorch(detector: nn.Module, path: str) -> Run:
    return lambda batch: detect(detector, batch[0], batch[1].tolist())


def compiled(detector: nn.Module, path: str) -> Run:
    module = torch.compile(OnnxDetector(detector), dynamic=False)
    return lambda batch: module(*batch)


def onnx_runtime(load: Callable, detector: nn.Module, path: str) -> Run:
    run = load(path, torch.get_num_threads())
    return lambda batch: run(*(x.numpy() for x in batch))


RUNTIMES: Dict[str, Callable[[nn.Module, str], Run]] = {
    'pytorch': pytorch, 'torch.compile': compiled,
    'onnxruntime': functools.partial(onnx_runtime, onnxruntime_model),
    'openvino': functools.partial(onnx_runtime, openvino_model)}


def make_runs(args: argparse.Namespace, models: Dict[str, nn.Module],
              folder: str) -> Dict[Variant, Callable[[], Any]]:
    """Prepare all variants, of runtimes that are installed."""
    paths = {name: str(Path(folder, f'{name}.onnx')) for name in models}
    if {'onnxruntime', 'openvino'} & set(args.runtimes):
        for name, path in paths.items():
            print(f'Exporting {name}', flush=True)
            export_onnx(models[name], Path(path), {})
    batches = {n: random_batch([tuple(args.image_size)] * n) for n in args.batch_sizes}
    runs: Dict[Variant, Callable[[], Any]] = {}
    for runtime in args.runtimes:
        try:
            detectors = {name: RUNTIMES[runtime](models[name], paths[name]) for name in MODELS}
        except ImportError as error:
            raise ConfigError(f'--runtimes {runtime}: the package {error.name} is not '
                              'installed; install it or leave this runtime out.') from error
        runs.update((Variant(runtime, name, n), functools.partial(detectors[name], batch))
                    for n, batch in sorted(batches.items()) for name in MODELS)
    return runs


def summarize(seconds: Dict[Variant, List[float]]) -> List[Dict[str, Any]]:
    """Return the median of each variant, and of ours in relation to stock of the same round."""
    records = []
    for variant, own in seconds.items():
        stock = seconds[variant._replace(model='stock')]
        median = statistics.median(own)
        records.append(dict(
            variant._asdict(), latency_ms=1e3 * median,
            images_per_second=variant.batch_size / median,
            time_to_stock=statistics.median(a / b for a, b in zip(own, stock)),
            seconds=own))
    return records


def parse_args() -> argparse.Namespace:
    parser = make_parser('benchmarks.inference', __doc__, 'config', '--image-size', '--rounds',
                         '--threads', '--json', rounds=10)
    parser.add_argument('checkpoint', nargs='?', help='its checkpoint; random weights by default')
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument('--batch-sizes', nargs='+', type=positive, default=[1, 8])
    parser.add_argument('--warmup', type=positive, default=2, help='runs before them')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    machine = describe_machine(prepare(args))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = make_runs(args, build_models(args), folder)
        timed = {variant: functools.partial(seconds_of, run) for variant, run in runs.items()}
        records = summarize(take_turns(timed, args.rounds, args.warmup, 'all variants'))
    table = make_table(
        ('runtime', 'batch', 'model', 'latency ms', 'images/s', 'time / stock'),
        ((x['runtime'], str(x['batch_size']), x['model'], f'{x["latency_ms"]:.1f}',
          f'{x["images_per_second"]:.2f}', f'{x["time_to_stock"]:.3f}') for x in records))
    open_console(machine).print(table)
    if args.json:
        write_record(args.json, 'benchmarks.inference', dict(
            machine=machine, image_size=args.image_size, cases=records))


if __name__ == '__main__':
    end_in_one_line(main)
