"""Measure latency and throughput of one group on the CPU, beside mmdet's detector with the same
weights: by PyTorch, by torch.compile, and by the runtimes that read the ONNX file."""
import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from mmdet.structures import DetDataSample
from rich.table import Table
from torch import nn

from groupdetr_mmdet.checkpoints.loading import load_weights
from groupdetr_mmdet.checkpoints.reading import read_checkpoint
from groupdetr_mmdet.commands.cli import end_mistakes
from groupdetr_mmdet.deploy.export import (OnnxDetector, export_onnx, onnxruntime_model,
                                           openvino_model, random_batch)
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.host.preflight import check_output

from .arguments import add_config_arguments, load_config, positive
from .cases import Case, build_model
from .measure import describe_machine
from .report import open_console, write_record

MODELS = ('stock', 'ours')
Images = Tuple[torch.Tensor, torch.Tensor]


class Variant(NamedTuple):
    """One thing to measure."""
    runtime: str
    model: str
    batch_size: int


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.inference', description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', nargs='?', help='its checkpoint; random weights by default')
    parser.add_argument('--runtimes', nargs='+', choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument('--batch-sizes', nargs='+', type=positive, default=[1, 8])
    parser.add_argument('--rounds', type=positive, default=10, help='timed runs of each')
    parser.add_argument('--warmup', type=positive, default=2, help='runs before them')
    parser.add_argument('--threads', type=positive, help='of the CPU')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write everything there')
    return parser.parse_args()


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


def pytorch(detector: nn.Module, path: str) -> Callable[[Images], Any]:
    def run(batch: Images) -> Any:
        images, sizes = batch
        shape = tuple(images.shape[-2:])
        samples = [DetDataSample(metainfo=dict(img_shape=tuple(size), batch_input_shape=shape))
                   for size in sizes.tolist()]
        return detector.predict(images, samples, rescale=False)

    return run


def compiled(detector: nn.Module, path: str) -> Callable[[Images], Any]:
    module = torch.compile(OnnxDetector(detector), dynamic=False)
    return lambda batch: module(*batch)


def onnxruntime(detector: nn.Module, path: str) -> Callable[[Images], Any]:
    run = onnxruntime_model(path, torch.get_num_threads())
    return lambda batch: run(*(x.numpy() for x in batch))


def openvino(detector: nn.Module, path: str) -> Callable[[Images], Any]:
    run = openvino_model(path, torch.get_num_threads())
    return lambda batch: run(*(x.numpy() for x in batch))


RUNTIMES = {'pytorch': pytorch, 'torch.compile': compiled, 'onnxruntime': onnxruntime,
            'openvino': openvino}


def make_runs(args: argparse.Namespace, models: Dict[str, nn.Module],
              folder: str) -> Dict[Variant, Callable[[], Any]]:
    """Prepare all variants, of runtimes that are installed."""
    runs: Dict[Variant, Callable[[], Any]] = {}
    for name, detector in models.items():
        path = str(Path(folder, f'{name}.onnx'))
        if {'onnxruntime', 'openvino'} & set(args.runtimes):
            print(f'Exporting {name}', flush=True)
            export_onnx(detector, Path(path), {})
        for runtime in args.runtimes:
            try:
                run = RUNTIMES[runtime](detector, path)
            except ImportError as error:
                raise ConfigError(f'--runtimes {runtime}: the package {error.name} is not '
                                  'installed; install it or leave this runtime out.') from error
            for batch_size in args.batch_sizes:
                batch = random_batch([tuple(args.image_size)] * batch_size)
                runs[Variant(runtime, name, batch_size)] = lambda run=run, batch=batch: run(batch)
    return dict(sorted(runs.items(), key=lambda item: (args.runtimes.index(item[0].runtime),
                                                       item[0].batch_size,
                                                       MODELS.index(item[0].model))))


@torch.no_grad()
def measure(runs: Dict[Variant, Callable[[], Any]], rounds: int,
            warmup: int) -> Dict[Variant, List[float]]:
    """Measure seconds of each run; all take turns, as a machine may be slow for a while."""
    seconds: Dict[Variant, List[float]] = {variant: [] for variant in runs}
    for i in range(warmup + rounds):
        for variant, run in runs.items():
            start = time.perf_counter()
            run()
            if i >= warmup:
                seconds[variant].append(time.perf_counter() - start)
    return seconds


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


def main() -> None:
    args = parse_args()
    if args.json:
        check_output('--json', args.json)
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        runs = make_runs(args, build_models(args), folder)
        print(f'Measuring {len(runs)} variants, {args.warmup + args.rounds} times', flush=True)
        records = summarize(measure(runs, args.rounds, args.warmup))
    machine = describe_machine(torch.device('cpu'))
    table = Table('runtime', 'batch', 'model', 'latency ms', 'images/s', 'time / stock')
    for record in records:
        table.add_row(record['runtime'], str(record['batch_size']), record['model'],
                      f'{record["latency_ms"]:.1f}', f'{record["images_per_second"]:.2f}',
                      f'{record["time_to_stock"]:.3f}')
    open_console(machine).print(table)
    if args.json:
        write_record(args.json, 'benchmarks.inference', dict(
            machine=machine, image_size=args.image_size, cases=records))


if __name__ == '__main__':
    end_mistakes(main)
