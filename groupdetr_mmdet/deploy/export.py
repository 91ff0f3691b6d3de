"""Export a trained detector to ONNX, and compare it with PyTorch."""
import copy
import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.models.detectors import DABDETR, DETR, DINO, ConditionalDETR, DeformableDETR
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..compat import onnx_exporter
from ..errors import ConfigError, first_line
from ..group_detector import ALL_GROUPS
from ..group_queries import GroupQueries
from ..io import write_atomically

INPUTS, OUTPUTS = ('images', 'image_sizes'), ('boxes', 'scores', 'labels')
OPSET = 18
OPSETS = range(16, 21)  # from GridSample of deformable attention to the exporter's newest
BOX_TOLERANCE = 1e-3  # relative to the longer side of the image
SCORE_TOLERANCE = 1e-3
# Share of DINO's detections that may differ: a content query belongs to a rank of the proposals,
# and rounding can swap the ranks of proposals with nearly equal scores.
SWAPPED_TOLERANCE = 0.02
Size = Tuple[int, int]
Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]  # INPUTS -> OUTPUTS
# (height, width) of the images of two batches, the second with padding in both directions
CHECKED_BATCHES: Sequence[Sequence[Size]] = (((320, 416), ), ((250, 441), (379, 318)))


class OnnxDetector(nn.Module):
    """A DETR of mmdet in evaluation mode, stock or with groups, as a function of tensors.

    Padding masks and the scaling of boxes, for which mmdet reads each image's size in Python, are
    tensor operations here.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        check_exportable(detector)
        self.detector = detector
        self.max_per_img = min(
            detector.bbox_head.test_cfg.get('max_per_img', detector.num_queries),
            count_predictions(detector))
        self.eval()

    def forward(self, images: Tensor, image_sizes: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            images (Tensor): Normalized images, padded at the bottom and right with zeros, shape
                (bs, 3, height, width).
            image_sizes (Tensor): Integers, each image's (height, width) in pixels without the
                padding, shape (bs, 2).

        Returns:
            tuple[Tensor, Tensor, Tensor]: In the order of falling scores, boxes, xyxy in pixels,
            shape (bs, max_per_img, 4), and scores and labels, both (bs, max_per_img).
        """
        detector, head = self.detector, self.detector.bbox_head
        size = tuple(images.shape[-2:])
        feats = detector.extract_feat(images)
        no_padding = SimpleNamespace(img_shape=size, batch_input_shape=size)
        encoder_inputs, decoder_inputs = detector.pre_transformer(feats, [no_padding])
        masked = self.masked_inputs(feats, image_sizes, size)
        for inputs in (encoder_inputs, decoder_inputs):
            inputs.update({name: masked[name] for name in inputs.keys() & masked.keys()})
        queries, head_inputs = detector.pre_decoder(**detector.forward_encoder(**encoder_inputs))
        decoded = detector.forward_decoder(**{**decoder_inputs, **queries})
        logits, boxes = head(**head_inputs, **decoded)
        return self._select(logits[-1], boxes[-1], image_sizes)

    def masked_inputs(self, feats: Sequence[Tensor], image_sizes: Tensor,
                      batch_size: Size) -> Dict[str, Tensor]:
        """Compute the inputs of the transformer that depend on padding, under mmdet's names.

        These are padding masks, True at padding, shape (bs, num_feat_points), positional
        encodings, (bs, num_feat_points, dim), and valid ratios (w, h), (bs, num_levels, 2).
        """
        detector = self.detector
        y, x = (torch.arange(size, device=image_sizes.device) for size in batch_size)
        height, width = image_sizes[:, 0, None, None], image_sizes[:, 1, None, None]
        padding = ((y[:, None] >= height) | (x >= width))[:, None].float()  # (bs, 1, H, W)
        masks = [F.interpolate(padding, tuple(x.shape[-2:])).squeeze(1).bool() for x in feats]
        positions = [detector.positional_encoding(x).flatten(2).transpose(1, 2) for x in masks]
        masked = {}
        if isinstance(detector, DeformableDETR):
            positions = [x + level for x, level in zip(positions, detector.level_embed)]
            masked['valid_ratios'] = torch.stack([detector.get_valid_ratio(x) for x in masks], 1)
        masked['feat_mask'] = masked['memory_mask'] = torch.cat([x.flatten(1) for x in masks], 1)
        masked['feat_pos'] = masked['memory_pos'] = torch.cat(positions, 1)
        return masked

    def _select(self, logits: Tensor, boxes: Tensor,
                image_sizes: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Select the best detections, as mmdet's head; returns as ``forward``."""
        if self.detector.bbox_head.loss_cls.use_sigmoid:  # a query can detect several classes
            num_classes = logits.size(-1)
            scores, index = logits.sigmoid().flatten(1).topk(self.max_per_img)
            query, labels = index // num_classes, index % num_classes
        else:
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)  # without background
            scores, query = scores.topk(self.max_per_img)
            labels = labels.gather(1, query)
        scale = image_sizes.flip(1).repeat(1, 2)[:, None].to(boxes)  # (bs, 1, 4): w, h, w, h
        boxes = bbox_cxcywh_to_xyxy(boxes.gather(1, query[..., None].expand(-1, -1, 4))) * scale
        return boxes.clamp(min=0).minimum(scale), scores, labels


def check_exportable(detector: nn.Module) -> None:
    """Raise a ConfigError unless :class:`OnnxDetector` can run a detector by one group."""
    # Subclasses of DINO in mmdet, such as DDQ and Grounding DINO, select detections differently.
    of_mmdet = (base for base in type(detector).__mro__ if base.__module__.startswith('mmdet.'))
    if next(of_mmdet, None) not in (DETR, ConditionalDETR, DABDETR, DeformableDETR, DINO):
        raise ConfigError(f'model.type={type(detector).__name__} cannot be exported: DETR, '
                          'ConditionalDETR, DABDETR, DeformableDETR and DINO can, stock or with '
                          'groups.')
    if isinstance(detector, GroupQueries) and detector.test_cfg['query_group'] == ALL_GROUPS:
        raise ConfigError('model.test_cfg.query_group=all cannot be exported: a file holds one '
                          'group, choose it with --query-group.')


def count_predictions(detector: nn.Module) -> int:
    """Return the most detections of an image: with a sigmoid, every class of every query."""
    num_queries = detector.num_queries * max(1, getattr(detector, 'num_patterns', 0))
    head = detector.bbox_head
    return num_queries * (head.cls_out_channels if head.loss_cls.use_sigmoid else 1)


def export_onnx(detector: nn.Module, path: Path, metadata: Dict[str, Any],
                opset: int = OPSET) -> Dict[str, float]:
    """Write an ONNX file, if its detections equal the detector's.

    Args:
        detector (nn.Module): On the CPU, with its weights.
        path (Path): File to write.
        metadata (dict): Entries of the file, texts or values for JSON.
        opset (int): Version of ONNX's operators, 16 to 20. Defaults to 18.

    Returns:
        dict[str, float]: See :func:`largest_differences`.

    Raises:
        ConfigError: If the detections differ.
    """
    import onnx
    import onnxruntime  # noqa: F401, so that a missing package is an error before tracing
    module = OnnxDetector(detector)
    model = onnx.load_from_string(trace(module, opset))
    for output in model.graph.output:  # the exporter leaves this dimension open
        output.type.tensor_type.shape.dim[1].dim_value = module.max_per_img
    onnx.helper.set_model_props(model, {key: value if isinstance(value, str) else json.dumps(value)
                                        for key, value in metadata.items()})
    onnx.checker.check_model(model)
    print('[2/2] Comparing onnxruntime with PyTorch', flush=True)
    try:
        differences = check_onnx(model.SerializeToString(), detector)
    except RuntimeError as error:
        raise ConfigError(f'{path} is not written: {first_line(error)}; try another --opset.'
                          ) from error
    write_atomically(path, model.SerializeToString())
    return differences


def trace(module: OnnxDetector, opset: int) -> bytes:
    """Return an ONNX file for any number and size of images.

    By TorchScript, which traces the sizes in mmdet's deformable attention, elements of tensors;
    ``torch.export`` fails at them.
    """
    batch, file = {0: 'batch'}, io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of numbers that tracing fixes
        torch.onnx.export(
            module, random_batch(CHECKED_BATCHES[-1]), file, input_names=INPUTS,
            output_names=OUTPUTS, opset_version=opset, **onnx_exporter(),
            dynamic_axes=dict.fromkeys(('image_sizes', *OUTPUTS), batch) | dict(
                images={**batch, 2: 'height', 3: 'width'}))
    return file.getvalue()


def random_batch(sizes: Sequence[Size], seed: int = 0) -> Tuple[Tensor, Tensor]:
    """Return random images of the given (height, width), padded with zeros, and their sizes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(len(sizes), 3, *(max(side) for side in zip(*sizes)))
    for image, (height, width) in zip(images, sizes):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    return images, torch.tensor(sizes)


def onnxruntime_model(path: Union[str, bytes], num_threads: int = 0) -> Run:
    """Load an ONNX file, or its content, in onnxruntime, by default with all threads."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda *inputs: session.run(OUTPUTS, dict(zip(INPUTS, inputs)))


def check_onnx(path: Union[str, bytes], detector: nn.Module,
               batches: Sequence[Sequence[Size]] = CHECKED_BATCHES,
               load: Callable[[Any], Run] = onnxruntime_model) -> Dict[str, float]:
    """Compare an ONNX file, or its content, with the detector on random images.

    Args:
        path (str | bytes): The file or its content.
        detector (nn.Module): The detector.
        batches (Sequence): (height, width) in pixels of the images of each batch.
        load (Callable): Returns the function that runs a file.

    Returns:
        dict[str, float]: The largest :func:`largest_differences` of all images.

    Raises:
        RuntimeError: If the detections differ.
    """
    run, found = load(path), []
    swapped = SWAPPED_TOLERANCE if isinstance(detector, DINO) else 0.
    for sizes in batches:
        images, image_sizes = random_batch(sizes)
        outputs = zip(*run(images.numpy(), image_sizes.numpy()))
        for output, expected, size in zip(outputs, predict(detector, images, sizes), sizes):
            boxes, scores, labels = map(torch.from_numpy, output)
            actual = InstanceData(bboxes=boxes, scores=scores, labels=labels)
            found.append(largest_differences(actual, expected, max(size), swapped))
    return {key: max(differences[key] for differences in found) for key in found[0]}


def detect(detector: nn.Module, images: Tensor, sizes: Sequence[Size]) -> List[InstanceData]:
    """Detect objects with mmdet's ``predict``; ``sizes`` are the images' (height, width)."""
    shape = tuple(images.shape[-2:])
    samples = [DetDataSample(metainfo=dict(img_shape=tuple(size), batch_input_shape=shape))
               for size in sizes]
    return [x.pred_instances for x in detector.predict(images, samples, rescale=False)]


@torch.no_grad()
def predict(detector: nn.Module, images: Tensor, sizes: Sequence[Size]) -> List[InstanceData]:
    """Return the detections of every class of every query, the best first."""
    detector = copy.deepcopy(detector).eval()
    head = detector.bbox_head
    head.test_cfg = dict(head.test_cfg, max_per_img=count_predictions(detector))
    return detect(detector, images, sizes)


def largest_differences(actual: InstanceData, expected: InstanceData, side: int,
                        swapped: float = 0.) -> Dict[str, float]:
    """Compare the detections of two runtimes in an image whose longer side has ``side`` pixels.

    Detections of equal score may be in any order, or missing behind the limit of detections. So
    scores are compared in order, and each detection of ``actual`` with the nearest detection of
    its label and score in ``expected``, which has at least as many, of falling scores.

    Returns:
        dict[str, float]: ``pixels``, largest difference of a coordinate; ``score``, largest
        difference of a score; ``swapped``, share of detections without a near detection.

    Raises:
        RuntimeError: If scores differ, or ``swapped`` is exceeded.
    """
    score = (actual.scores - expected.scores[:len(actual.scores)]).abs().max().item()
    pixels = torch.cdist(actual.bboxes, expected.bboxes, p=float('inf'))
    other = ((actual.labels[:, None] != expected.labels) |
             ((actual.scores[:, None] - expected.scores).abs() > SCORE_TOLERANCE))
    pixels = pixels.masked_fill(other, float('inf')).min(1).values
    missed = ~(pixels <= BOX_TOLERANCE * side)
    share = missed.double().mean().item()
    if not score <= SCORE_TOLERANCE or share > swapped:
        worst = actual[pixels.argmax().item()]
        box = [round(x, 1) for x in worst.bboxes[0].tolist()]
        raise RuntimeError('The detections of ONNX and PyTorch differ: label '
                           f'{worst.labels.item()} with score {worst.scores.item():.4f} at {box} '
                           'is missing in PyTorch.')
    return dict(pixels=pixels[~missed].max().item(), score=score, swapped=share)
