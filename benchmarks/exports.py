"""Export the detectors of configs to ONNX, and print how far onnxruntime and OpenVINO are from
PyTorch, on images of several sizes, alone and padded to one batch."""
import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Dict

from rich.console import Console
from rich.table import Table

from groupdetr_mmdet.commands.cli import end_mistakes
from groupdetr_mmdet.deploy.export import check_onnx, export_onnx, openvino_model
from groupdetr_mmdet.errors import ConfigError

from .arguments import load_config
from .cases import Case, build_model

CONFIGS = ('group_cond_detr_r50_12e', 'group_dab_detr_r50_12e', 'group_deformable_detr_r50_12e',
           'group_deformable_detr_refine_r50_12e',
           'group_deformable_detr_refine_two_stage_r50_12e', 'group_dino_4scale_r50_12e')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='benchmarks.exports', description=__doc__)
    parser.add_argument('configs', nargs='*', default=CONFIGS,
                        help='configs of our detectors, or shipped names (default: one of each '
                        'family); the weights are random')
    return parser.parse_args()


def measure(config: str) -> Dict[str, Dict[str, float]]:
    """Export one detector, and compare each runtime."""
    cfg = load_config(config)
    case = Case('inference', 'ours', None, cfg.model.num_query_groups, cfg.model.num_queries, 0)
    detector = build_model(cfg, case).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'detector.onnx')
        differences = {'onnxruntime': export_onnx(detector, path, {})}
        if importlib.util.find_spec('openvino'):
            differences['OpenVINO'] = check_onnx(str(path), detector, load=openvino_model)
    return differences


def main() -> None:
    args = parse_args()
    table = Table('config', 'runtime', 'boxes, pixels', 'scores')
    for config in args.configs:
        try:
            measured = measure(config)
        except RuntimeError as error:
            raise ConfigError(f'CONFIG {config}: {error}') from error
        for runtime, found in measured.items():
            table.add_row(Path(config).stem, runtime, f'{found["pixels"]:.1g}',
                          f'{found["score"]:.1g}')
    Console(width=120).print(table)


if __name__ == '__main__':
    end_mistakes(main)
