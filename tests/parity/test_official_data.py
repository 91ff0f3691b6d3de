"""Augmentation and post-processing follow the rules of the official code.

mmdet rounds a resized side, the official code cuts it off: sizes may differ by a pixel.
"""
from typing import Dict, List, Tuple

import numpy as np
import pytest
import torch
from builders import build, detector_config, make_batch
from mmdet.structures.bbox import HorizontalBoxes, bbox_cxcywh_to_xyxy
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from parity import golden

from groupdetr_mmdet.config import read_config

DRAWS = 1000
SCALES = range(480, 801, 32)  # short sides, of at most 1333 pixels on the long side
WIDTH, HEIGHT = 640, 427
BOXES = np.array(
    [[0, 0, 60, 40], [100, 50, 400, 300], [300, 200, 640, 427], [590, 380, 639, 420.]])


def draw_ours() -> List[Tuple[Tuple[int, int], np.ndarray, np.ndarray]]:
    """Sizes (width, height), boxes and labels after the shipped pipeline, of all draws."""
    init_default_scope('mmdet')
    pipeline = read_config('group_cond_detr_r50_12e').train_dataloader.dataset.pipeline
    transforms = Compose(pipeline[2:-1])  # between reading the file and packing
    image, found = np.zeros((HEIGHT, WIDTH, 1), np.uint8), []
    for seed in range(DRAWS):
        np.random.seed(seed)
        results = transforms(dict(
            img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2],
            gt_bboxes=HorizontalBoxes(torch.tensor(BOXES, dtype=torch.float32)),
            gt_bboxes_labels=np.arange(4), gt_ignore_flags=np.zeros(4, bool)))
        height, width = results['img_shape']
        found.append(((width, height), results['gt_bboxes'].tensor.numpy(),
                      results['gt_bboxes_labels']))
    return found


def resized(size: Tuple[int, int], boxes: np.ndarray, short: int, longest: float):
    scale = min(short / min(size), longest / max(size))
    return (size[0] * scale, size[1] * scale), boxes * scale


def draw_rules() -> List[Tuple[Tuple[float, float], np.ndarray, np.ndarray]]:
    """The same by the rules of the official transforms, without pixels."""
    rng, found = np.random.default_rng(0), []
    for _ in range(DRAWS):
        size, boxes, labels = (WIDTH, HEIGHT), BOXES, np.arange(4)
        if rng.random() < .5:
            boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [WIDTH, 0, WIDTH, 0]
        if rng.random() < .5:
            size, boxes = resized(size, boxes, rng.choice([400, 500, 600]), np.inf)
            crop = [rng.integers(384, min(int(x), 600) + 1) for x in size]
            left, top = (rng.integers(int(x) - c + 1) for x, c in zip(size, crop))
            boxes = (boxes - [left, top, left, top]).clip(0, [*crop, *crop])
            kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
            size, boxes, labels = crop, boxes[kept], labels[kept]
        found.append((*resized(size, boxes, rng.choice(SCALES), 1333), labels))
    return found


def measures(draws: list) -> Dict[str, np.ndarray]:
    """What describes a draw, an array over all draws each."""
    sizes = np.array([size for size, *_ in draws])
    sums = {}
    for label in range(4):
        of_label = [boxes[labels == label] / [*size, *size] for size, boxes, labels in draws]
        sums[f'kept {label}'] = np.array([float(len(x)) for x in of_label])
        sums[f'area {label}'] = np.array(
            [((x[:, 2:] - x[:, :2]).prod(1)).sum() for x in of_label])
        sums[f'left {label}'] = np.array([x[:, 0].sum() for x in of_label])
    return dict(sums, width=sizes[:, 0], height=sizes[:, 1], ratio=sizes[:, 0] / sizes[:, 1],
                whole=np.isclose(sizes[:, 0] / sizes[:, 1], WIDTH / HEIGHT, rtol=3e-3) * 1.)


def test_augmentation_follows_the_official_rules():
    """Every size and box is one that the rules allow; means and spreads agree."""
    ours = draw_ours()
    for (width, height), boxes, labels in ours:
        short, long = sorted((width, height))
        assert short in SCALES and long <= 1334 or abs(long - 1333) <= 1 and short <= 800
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width, height]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all() and len(boxes) == len(labels)
        if abs(width / height - WIDTH / HEIGHT) < 2e-3:  # not cropped
            assert len(set(labels)) <= 4
    found, expected = measures(ours), measures(draw_rules())
    for name, values in expected.items():
        error = np.sqrt((values.var() + found[name].var()) / DRAWS)
        assert abs(found[name].mean() - values.mean()) <= 4 * error + 1e-9, name
        assert found[name].std() == pytest.approx(values.std(), rel=.15, abs=1e-6), name
    shorts = np.bincount([min(size) for size, *_ in ours], minlength=801)[list(SCALES)]
    assert shorts.min() > .5 * DRAWS / len(SCALES), 'every scale is drawn'


@torch.no_grad()
def test_the_best_100_of_all_queries_and_classes_are_kept_in_pixels_of_the_original_image():
    config = detector_config(num_queries=40)
    config['test_cfg']['max_per_img'] = 100
    model = build(config).double().eval()
    inputs, samples = make_batch()
    for sample in samples:
        height, width = sample.img_shape
        sample.set_metainfo(dict(ori_shape=(3 * height, 2 * width), scale_factor=(1 / 2, 1 / 3)))
    with golden.float64():
        logits, boxes = (x[-1] for x in model(inputs.double(), samples, mode='tensor'))
        results = model.predict(inputs.double(), samples, rescale=True)
    for image, result in enumerate(results):
        scores, index = logits[image].sigmoid().flatten().topk(100)
        height, width = result.ori_shape
        expected = bbox_cxcywh_to_xyxy(boxes[image])[index // 5]
        expected = (expected * torch.tensor([width, height] * 2)).clamp(min=0)
        expected = torch.minimum(expected, torch.tensor([width, height] * 2))
        found = result.pred_instances
        assert torch.equal(found.scores, scores)
        assert torch.equal(found.labels, index % 5)
        torch.testing.assert_close(found.bboxes, expected.to(found.bboxes), atol=1e-9, rtol=1e-12)
