"""Queries that predict masks are decoded, matched and taken group by group."""
import numpy as np
import torch
from builders import build
from mask_builders import make_mask_batch, mask2former_config

from groupdetr_mmdet.analysis.group_metrics import one_group
from groupdetr_mmdet.analysis.queries import decode_masks, detections, match_masks

K, N = 3, 6


@torch.no_grad()
def test_masks_of_all_groups_have_their_boxes():
    model = build(mask2former_config()).eval()
    inputs, samples = make_mask_batch()
    decoded = decode_masks(model, inputs, samples)
    assert decoded.cls_scores.shape[:2] == decoded.bbox_preds.shape[:2] == (2, K * N)
    for image, sample in enumerate(samples):
        assert decoded.masks[image].shape == (K * N, *sample.img_shape)
        found = detections(model, decoded, image, score_thr=0)
        assert found.query_groups.tolist() == [g for g in range(K) for _ in range(N)]
        for mask, box in zip(found.masks, found.bboxes):
            y, x = np.nonzero(mask.numpy())
            edges = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0] * 4
            assert np.abs(box.numpy() - edges).max() < 1e-2


def test_a_perfect_mask_of_each_group_is_matched():
    model = build(mask2former_config())
    _, samples = make_mask_batch(sizes=((64, 96), (64, 96)))
    gts = samples[0].gt_instances
    masks, logits = torch.full((K * N, 64, 96), -9.), torch.zeros(K * N, 6)
    wanted = torch.tensor([[0, 1, 2], [5, 3, 1], [2, 4, 0]])
    for group in range(K):
        rows = group * N + wanted[group]
        masks[rows] += 18 * gts.masks.to_tensor(torch.float, 'cpu')
        logits[rows, gts.labels] = 9.
    assert torch.equal(match_masks(model, logits, masks, gts), wanted)


def test_the_metric_takes_the_masks_of_one_group():
    result = dict(img_id=7, query_groups=np.array([0, 1, 1]), query_group=0, masks=['a', 'b', 'c'],
                  **{name: np.arange(3) for name in ('bboxes', 'scores', 'labels')})
    found = one_group(result, 1)
    assert found['masks'] == ['b', 'c'] and found['scores'].tolist() == [1, 2]
