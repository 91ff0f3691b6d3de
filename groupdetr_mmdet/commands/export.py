"""Export a detector to ONNX: one group of queries, any number and size of images. The file is
written only if onnxruntime and PyTorch find the same objects."""
import argparse
from pathlib import Path

from mmdet.registry import MODELS

from ..checkpoints.loading import load_weights
from ..checkpoints.reading import read_checkpoint
from ..deploy.export import CHECKED_BATCHES, OPSET, OPSETS, check_exportable, export_onnx
from ..deploy.inference import class_names
from ..deploy.preprocessing import describe_preprocessing
from ..errors import ConfigError
from ..io import check_output
from .common import add_inference_arguments, load_inference_config

# Descriptions of inputs and outputs, for the metadata of the file
TENSORS = dict(
    images='float32, NCHW, resized, (pixel - mean) / std, then zeros at the bottom and right '
    'where images of a batch differ in size',
    image_sizes='int64, (height, width) of each resized image without the zeros',
    boxes='xyxy in pixels of the resized image')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_inference_arguments(parser)
    parser.add_argument('out', metavar='OUT', help='file to write, *.onnx')
    parser.add_argument('--opset', type=int, default=OPSET, metavar='N', help='version of the '
                        f'operators, {OPSETS[0]} to {OPSETS[-1]} (default: %(default)s)')


def main(args: argparse.Namespace) -> None:
    check_output('OUT', args.out, 'an ONNX file', ('.onnx', ))
    if args.opset not in OPSETS:
        raise ConfigError(f'--opset {args.opset} must be {OPSETS[0]}, which has the GridSample of '
                          f'deformable attention, to {OPSETS[-1]}, the highest of PyTorch.')
    cfg = load_inference_config(args)
    checkpoint = read_checkpoint(args.checkpoint)
    cfg.model.pop('init_cfg', None)
    detector = MODELS.build(cfg.model)
    check_exportable(detector)
    load_weights(detector, checkpoint, args.checkpoint)
    metadata = dict(
        classes=class_names(cfg, checkpoint),
        **describe_preprocessing(cfg, detector.data_preprocessor), **TENSORS,
        model=type(detector).__name__, query_group=detector.test_cfg.get('query_group', 0),
        opset=args.opset)
    print('[1/2] Tracing the detector', flush=True)
    differences = export_onnx(detector, Path(args.out), metadata, args.opset)
    sizes = ', '.join('x'.join(map(str, size)) for batch in CHECKED_BATCHES for size in batch)
    size = Path(args.out).stat().st_size / 2**20
    print(f'Wrote {args.out} ({size:.1f} MiB, opset {args.opset}): on images '
          f'of {sizes} onnxruntime and PyTorch find the same, boxes within '
          f'{differences["pixels"]:.1g} pixels, scores within {differences["score"]:.1g}')
    if differences['swapped']:
        print(f'Up to {differences["swapped"]:.1%} of the detections of an image differ: two '
              'proposals of nearly equal score may swap their queries.')
