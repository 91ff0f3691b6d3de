"""Predictions and matches of the queries of every group."""
import contextlib
import inspect
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence

import torch
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmdet.structures.mask import mask2bbox
from mmengine.structures import InstanceData
from torch import Tensor

from ..assigner import OneToManyHungarianAssigner
from ..attention import group_self_attention
from ..errors import ConfigError
from ..group_detector import GroupDetector
from ..groups import decoding
from ..mask2former import GroupMask2Former


class DecodedQueries(NamedTuple):
    """Predictions of the last decoder layer by the queries of all groups."""
    cls_scores: Tensor  #: logits, (bs, K * N, num_classes), with a softmax also of background
    bbox_preds: Tensor  #: boxes, normalized cxcywh, (bs, K * N, 4)
    references: Optional[Tensor]  #: reference points, normalized (x, y), (bs, K * N, 2)
    samples: SampleList  #: information and ground truth of each image
    masks: Optional[List[Tensor]] = None  #: logits of each image's masks, (K * N, h, w)


@torch.no_grad()
def decode_queries(model: GroupDetector, data: Any) -> DecodedQueries:
    """Run a detector in evaluation mode on a batch, with the queries of all groups."""
    data = model.data_preprocessor(data, False)
    inputs, samples = data['inputs'], data['data_samples']
    if isinstance(model, GroupMask2Former):
        return decode_masks(model, inputs, samples)
    with decoding(range(model.num_query_groups)):
        head_inputs = model.forward_transformer(model.extract_feat(inputs), samples)
    cls_scores, bbox_preds = model.bbox_head(**head_inputs)
    references = head_inputs.get('references')
    if references is not None:  # of all layers together, or of each layer
        is_of_queries = isinstance(references, Tensor) and references.dim() == 3
        references = (references if is_of_queries else references[0])[..., :2]
    return DecodedQueries(cls_scores[-1], bbox_preds[-1], references, samples)


def decode_masks(model: GroupMask2Former, inputs: Tensor, samples: SampleList) -> DecodedQueries:
    """Run Mask2Former as :func:`decode_queries`, with the boxes around its masks."""
    with decoding(range(model.num_query_groups)):
        logits, padded = model.panoptic_head.predict(model.extract_feat(inputs), samples)
    masks = [x[:, :sample.img_shape[0], :sample.img_shape[1]]
             for x, sample in zip(padded, samples)]
    boxes = [bbox_xyxy_to_cxcywh(mask2bbox(x > 0)) / x.new_tensor([*x.shape[:0:-1]] * 2)
             for x in masks]
    return DecodedQueries(logits, torch.stack(boxes), None, samples, masks)


def has_references(model: GroupDetector) -> bool:
    """Return whether the queries of a detector have reference points."""
    return 'references' in inspect.signature(model.bbox_head.forward).parameters


def match_queries(model: GroupDetector, decoded: DecodedQueries) -> List[Tensor]:
    """Match the queries of each group with the ground truth, as in training.

    Returns:
        list[Tensor]: For each image the query of each object in each group, 0 to N - 1, shape
        (K, num_objects); -1 for an object without a query.

    Raises:
        ConfigError: If the assigner matches an object with many queries of a group.
    """
    assigner, size, k = model.bbox_head.assigner, model.group_size, model.num_query_groups
    if isinstance(assigner, OneToManyHungarianAssigner):
        raise ConfigError('model.train_cfg.assigner.type=OneToManyHungarianAssigner matches an '
                          'object with many queries of a group: choose a config with '
                          "type='GroupHungarianAssigner'.")
    gts = [ground_truth(sample) for sample in decoded.samples]
    if decoded.masks is not None:
        return [match_masks(model, *x) for x in zip(decoded.cls_scores, decoded.masks, gts)]
    # Test pipelines load annotations last: boxes are in pixels of the original image.
    metas = [dict(sample.metainfo, img_shape=sample.ori_shape) for sample in decoded.samples]
    pairs = assigner.match_layers(decoded.cls_scores[None], decoded.bbox_preds[None], gts, metas,
                                  model.bbox_head.num_classes)
    rows = pairs.rows[0]
    matched = rows.new_full((k, sum(map(len, gts))), -1)
    matched[rows // size % k, pairs.gts[0]] = rows % size
    return list(matched.split([len(x) for x in gts], 1))


def match_masks(model: GroupMask2Former, logits: Tensor, masks: Tensor,
                gts: InstanceData) -> Tensor:
    """Match an image's masks by all pixels, as :func:`match_queries`; training draws points."""
    targets = gts.masks.resize(masks.shape[-2:]).to_tensor(masks.dtype, masks.device)
    result = model.panoptic_head.assigner.assign(
        InstanceData(scores=logits, masks=masks), InstanceData(labels=gts.labels, masks=targets))
    objects = result.gt_inds - 1  # -1: background
    return inverted(objects.view(model.num_query_groups, -1), len(gts))


def ground_truth(sample: DetDataSample) -> InstanceData:
    """Return a sample's ground truth, ``bboxes`` as xyxy in pixels.

    Raises:
        ConfigError: If the pipeline has not loaded it.
    """
    if 'bboxes' not in sample.get('gt_instances', ()):
        raise ConfigError('the test pipeline loads no ground truth: add '
                          "dict(type='LoadAnnotations', with_bbox=True) before its last step.")
    return sample.gt_instances


def to_pixels(sample: DetDataSample, boxes: Tensor) -> Tensor:
    """Convert normalized cxcywh boxes to xyxy in pixels of the original image."""
    return bbox_cxcywh_to_xyxy(boxes) * boxes.new_tensor(sample.ori_shape[::-1] * 2)


def count_changes(before: Sequence[Tensor], after: Sequence[Tensor], num_queries: int) -> Tensor:
    """Count the queries of each group whose object has changed, a mean over images, shape (K, ).

    This is the instability of `DN-DETR <https://arxiv.org/abs/2203.01305>`_, Section 3. ``before``
    and ``after`` are results of :func:`match_queries`. An object that moves to another query
    counts for both queries.
    """
    changes = [(inverted(a, num_queries) != inverted(b, num_queries)).sum(1)
               for a, b in zip(before, after)]
    return torch.stack(changes).double().mean(0)


def inverted(matched: Tensor, size: int) -> Tensor:
    """Convert the queries of objects, (K, G), to the objects of queries, (K, N), or back."""
    inverse = matched.new_full((len(matched), size), -1)
    groups, columns = (matched >= 0).nonzero(as_tuple=True)
    inverse[groups, matched[groups, columns]] = columns
    return inverse


@contextlib.contextmanager
def joint_self_attention(model: GroupDetector) -> Iterator[None]:
    """Let the queries of all groups attend to each other inside a ``with`` block."""
    before = model.decoder.layers[0].self_attn.num_queries
    group_self_attention(model.decoder, None)
    try:
        yield
    finally:
        group_self_attention(model.decoder, before)


def detections(model: GroupDetector, decoded: DecodedQueries, image: int,
               score_thr: float) -> InstanceData:
    """Return the detections of image ``image`` of the batch, one for each query.

    The scores are at least ``score_thr``. The result has ``bboxes`` (xyxy in pixels of the
    original image), ``labels``, ``scores``, ``query_groups``, and if the detector predicts them
    ``references`` ((x, y) in the same pixels) and ``masks`` (of the resized image).
    """
    logits, sample = decoded.cls_scores[image], decoded.samples[image]
    is_sigmoid = model.bbox_head.loss_cls.use_sigmoid  # a softmax also has background
    scores, labels = (logits.sigmoid() if is_sigmoid else logits.softmax(-1)[:, :-1]).max(-1)
    found = InstanceData(
        bboxes=to_pixels(sample, decoded.bbox_preds[image]), labels=labels, scores=scores,
        query_groups=torch.arange(len(scores), device=scores.device) // model.group_size)
    if decoded.masks is not None:
        found.masks = decoded.masks[image] > 0
    if decoded.references is not None:
        found.references = decoded.references[image] * scores.new_tensor(sample.ori_shape[::-1])
    return found[scores >= score_thr].cpu()
