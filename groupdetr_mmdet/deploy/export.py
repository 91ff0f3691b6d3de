"""Export a trained detector to ONNX, and compare the two."""
import contextlib
import json
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple
from unittest import mock

import torch
import torch.nn.functional as F
from mmdet.models.detectors import ConditionalDETR
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor, nn

from ..errors import ConfigError

INPUTS, OUTPUTS = ('images', 'image_sizes'), ('boxes', 'scores', 'labels')
OPSET = 18
BOX_TOLERANCE = 1e-3  # relative to the longer side of the image
SCORE_TOLERANCE = 1e-3
Size = Tuple[int, int]
# (height, width) of the images of two batches: one alone, and one with padding in both directions.
CHECKED_BATCHES: Sequence[Sequence[Size]] = (((320, 416), ), ((250, 441), (379, 318)))


class OnnxDetector(nn.Module):
    """A Conditional DETR in evaluation mode, from tensors to tensors.

    The detector does everything but two steps that ask for each image's size in Python: the
    padding mask and the scaling of the boxes. They are tensor operations here.

    Args:
        detector (ConditionalDETR): The stock detector or one with groups, which uses the group
            of its ``test_cfg``.

    Raises:
        ConfigError: If it is another detector.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        if not isinstance(detector, ConditionalDETR):
            raise ConfigError(f'model.type={type(detector).__name__} cannot be exported: only '
                              'ConditionalDETR and GroupConditionalDETR can.')
        self.detector = detector.eval()
        self.max_per_img = detector.bbox_head.test_cfg.get('max_per_img', detector.num_queries)

    def forward(self, images: Tensor, image_sizes: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            images (Tensor): Normalized images, padded at the bottom and right with zeros, shape
                (bs, 3, height, width).
            image_sizes (Tensor): Integers, each image's (height, width) in pixels without the
                padding, shape (bs, 2).

        Returns:
            tuple[Tensor, Tensor, Tensor]: In the order of falling scores, boxes as xyxy in the
            image's pixels, shape (bs, max_per_img, 4); scores, shape (bs, max_per_img); labels,
            shape (bs, max_per_img).
        """
        detector = self.detector
        feat = detector.extract_feat(images)[-1]
        padding = padding_mask(image_sizes, images.shape[-2:], feat.shape[-2:])
        memory_pos = detector.positional_encoding(padding).flatten(2).permute(0, 2, 1)
        memory_mask = padding.flatten(1)
        encoded = detector.forward_encoder(
            feat=feat.flatten(2).permute(0, 2, 1), feat_mask=memory_mask, feat_pos=memory_pos)
        decoder_inputs, head_inputs = detector.pre_decoder(**encoded)
        decoded = detector.forward_decoder(
            memory_mask=memory_mask, memory_pos=memory_pos, **decoder_inputs)
        logits, boxes = detector.bbox_head(**head_inputs, **decoded)
        return select(logits[-1], boxes[-1], image_sizes, self.max_per_img)


def padding_mask(image_sizes: Tensor, batch_size: Sequence[int],
                 feat_size: Sequence[int]) -> Tensor:
    """Mask the padding, at the resolution of the memory, as DETR does.

    Args:
        image_sizes (Tensor): (height, width) without padding, shape (bs, 2).
        batch_size (Sequence[int]): (height, width) of the padded images.
        feat_size (Sequence[int]): (height, width) of the memory, (h, w).

    Returns:
        Tensor: True at padding, shape (bs, h, w).
    """
    y, x = (torch.arange(size, device=image_sizes.device) for size in batch_size)
    height, width = image_sizes[:, 0, None, None], image_sizes[:, 1, None, None]
    mask = (y[:, None] >= height) | (x >= width)  # (bs, height, width)
    return F.interpolate(mask[:, None].float(), size=tuple(feat_size)).squeeze(1).bool()


def select(logits: Tensor, boxes: Tensor, image_sizes: Tensor,
           max_per_img: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Pick the best detections of each image, as mmdet's head does image by image.

    Args:
        logits (Tensor): Shape (bs, N, num_classes).
        boxes (Tensor): Normalized cxcywh, shape (bs, N, 4).
        image_sizes (Tensor): (height, width) without padding, shape (bs, 2).
        max_per_img (int): Detections of an image.

    Returns:
        tuple[Tensor, Tensor, Tensor]: As :meth:`OnnxDetector.forward`.
    """
    num_classes = logits.size(-1)
    scores, index = logits.sigmoid().flatten(1).topk(max_per_img)
    query = (index // num_classes)[..., None].expand(-1, -1, 4)
    scale = image_sizes.flip(1).repeat(1, 2)[:, None].to(boxes)  # (bs, 1, 4): w, h, w, h
    boxes = bbox_cxcywh_to_xyxy(boxes.gather(1, query)) * scale
    return boxes.clamp(min=0).minimum(scale), scores, index % num_classes


def export_onnx(detector: nn.Module, path: Path, metadata: Dict[str, Any]) -> Dict[str, float]:
    """Write an ONNX file, after it was found to detect what the detector does.

    Args:
        detector (nn.Module): On the CPU, with its weights.
        path (Path): File to write.
        metadata (dict): What the file says of the model, one JSON value an entry.

    Returns:
        dict[str, float]: The largest differences found, see :func:`largest_differences`.

    Raises:
        ConfigError: If the detector cannot be exported, or the packages are not installed.
        RuntimeError: If the ONNX model detects something else.
    """
    onnx = import_onnx()
    module = OnnxDetector(detector)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = os.path.join(folder, 'model.onnx')
        with quiet():
            trace(module).save(part, external_data=False)
        model = onnx.load(part)
        onnx.helper.set_model_props(model, {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in metadata.items()
        })
        onnx.checker.check_model(model)
        onnx.save(model, part)
        print('[2/2] Comparing onnxruntime with PyTorch', flush=True)
        differences = check_onnx(part, module.detector)
        os.replace(part, path)
    return differences


def import_onnx() -> Any:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'The package {error.name} is not installed: run pip install ".[onnx]" '
                          'in the folder of this package.') from error
    return onnx


def trace(module: OnnxDetector) -> 'torch.onnx.ONNXProgram':
    """Trace the graph, with the number and size of the images left open."""
    sizes = CHECKED_BATCHES[-1]
    example = random_batch(sizes)
    with torch.no_grad():
        return torch.onnx.export(
            module, example, input_names=INPUTS, output_names=OUTPUTS, opset_version=OPSET,
            dynamo=True, verbose=False,
            dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'}, {0: 'batch'}))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide what PyTorch's exporter says to its own developers."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), open(os.devnull, 'w') as sink, \
            contextlib.redirect_stdout(sink):
        warnings.simplefilter('ignore')
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


# Comparing


class Detections(NamedTuple):
    """Detections of one image: boxes (n, 4), xyxy in pixels, scores (n, ) and labels (n, )."""
    boxes: Tensor
    scores: Tensor
    labels: Tensor


def random_batch(sizes: Sequence[Size], seed: int = 0) -> Tuple[Tensor, Tensor]:
    """Random images of the given (height, width), padded with zeros, and their sizes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(len(sizes), 3, *(max(side) for side in zip(*sizes)))
    for image, (height, width) in zip(images, sizes):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    return images, torch.tensor(sizes)


def check_onnx(path: str, detector: nn.Module,
               batches: Sequence[Sequence[Size]] = CHECKED_BATCHES) -> Dict[str, float]:
    """Run an ONNX file in onnxruntime and the detector in PyTorch on the same images.

    Args:
        path (str): The file.
        detector (nn.Module): The detector, in evaluation mode on the CPU.
        batches (Sequence): Image sizes of each batch.

    Returns:
        dict[str, float]: The largest differences of all batches.

    Raises:
        RuntimeError: If they do not agree.
    """
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    found: List[Dict[str, float]] = []
    for sizes in batches:
        images, image_sizes = random_batch(sizes)
        outputs = session.run(OUTPUTS, dict(zip(INPUTS, (images.numpy(), image_sizes.numpy()))))
        expected = predict(detector, images, sizes)
        for i, size in enumerate(sizes):
            actual = Detections(*(torch.from_numpy(output[i]) for output in outputs))
            found.append(largest_differences(actual, expected[i], max(size)))
    return {key: max(differences[key] for differences in found) for key in found[0]}


@torch.no_grad()
def predict(detector: nn.Module, images: Tensor, sizes: Sequence[Size]) -> List[Detections]:
    """Every class of every query by mmdet's own way, boxes in the pixels of the given images.

    The best ``max_per_img`` of them, which come first, are the detections.
    """
    shape = tuple(images.shape[-2:])
    samples = [DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=shape))
               for size in sizes]
    head = detector.bbox_head
    every = dict(head.test_cfg, max_per_img=detector.num_queries * head.cls_out_channels)
    with mock.patch.object(head, 'test_cfg', every):
        samples = detector.predict(images, samples, rescale=False)
    return [Detections(x.pred_instances.bboxes, x.pred_instances.scores, x.pred_instances.labels)
            for x in samples]


def largest_differences(actual: Detections, expected: Detections, side: int) -> Dict[str, float]:
    """Compare two runtimes on one image.

    Predictions of equal score may come in any order, and any of them may have just missed the
    limit of detections. Therefore the scores are compared in order, and every detection is looked
    for among all predictions of its label.

    Args:
        actual (Detections): Detections of the one.
        expected (Detections): Predictions of the other in the order of falling scores, as many
            or more.
        side (int): Longer side of the image in pixels.

    Returns:
        dict[str, float]: ``pixels``, largest difference of a coordinate, and ``score``.

    Raises:
        RuntimeError: If the scores differ or a detection is not found.
    """
    score = (actual.scores - expected.scores[:len(actual.scores)]).abs().max().item()
    pixels = torch.cdist(actual.boxes, expected.boxes, p=float('inf'))
    other = ((actual.labels[:, None] != expected.labels) |
             ((actual.scores[:, None] - expected.scores).abs() > SCORE_TOLERANCE))
    pixels = pixels.masked_fill(other, float('inf')).min(1).values
    if not score <= SCORE_TOLERANCE or not pixels.max() <= BOX_TOLERANCE * side:
        box, score, label = (x[pixels.argmax()] for x in actual)
        raise RuntimeError(
            f'The ONNX model does not find what PyTorch finds: label {label} with score '
            f'{score:.4f} at {[round(x, 1) for x in box.tolist()]} is something else there.')
    return dict(pixels=pixels.max().item(), score=score)
