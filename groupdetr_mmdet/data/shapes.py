"""Generate a small detection data set: shapes on textured backgrounds, in COCO format.

It requires no download, and a seed always gives the same images. The class determines the outline
alone: color, size, rotation and texture are independent of the class.
"""
import json
import os
import tempfile
from pathlib import Path
from typing import List, Tuple

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from rich.progress import track

from ..errors import ConfigError

CLASSES = ('circle', 'square', 'triangle', 'star')
SPLITS = ('train', 'val')
VERSION = 1  # increment it if images of the same settings change
MINIMUM = dict(num_train=1, num_val=1, size=32, seed=0)


def outline(label: int, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Return the corners of a rotated shape in a circle, in pixels, shape (num_corners, 2)."""
    num_corners = (32, 4, 3, 10)[label]
    angles = angle + np.arange(num_corners) * (2 * np.pi / num_corners)
    radii = np.full(num_corners, radius)
    if CLASSES[label] == 'star':
        radii[1::2] *= 0.45
    return center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def texture(rng: np.random.Generator, color: np.ndarray, size: int) -> np.ndarray:
    """Draw noise of several scales around a color, with stripes, shape (size, size, 3)."""
    direction, phase = rng.uniform(0, 2 * np.pi, 2)
    frequency = 2 * np.pi / rng.uniform(6, 40)
    steps = np.arange(size, dtype=np.float32) * frequency
    stripes = np.sin(np.cos(direction) * steps + np.sin(direction) * steps[:, None] + phase)
    image = color + stripes[..., None] * rng.uniform(-15, 15, 3)
    for cells, strength in ((3, 20), (12, 15), (48, 10)):
        noise = rng.uniform(-strength, strength, (cells, cells, 3))
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return image


def place_shapes(rng: np.random.Generator, size: int) -> List[Tuple[int, np.ndarray]]:
    """Draw label and polygon of one to five shapes inside an image, with IoU of at most 0.1."""
    shapes = []
    for _ in range(rng.integers(1, 6)):
        for _ in range(20):  # a crowded image may end up with fewer shapes
            radius = size * np.exp(rng.uniform(np.log(0.08), np.log(0.25)))
            center = rng.uniform(radius + 1, size - radius - 1, 2)
            label = int(rng.integers(len(CLASSES)))
            polygon = outline(label, center, radius, rng.uniform(0, 2 * np.pi))
            boxes = [xywh(other) for _, other in shapes]
            if not boxes or mask_utils.iou([xywh(polygon)], boxes, [0] * len(boxes)).max() <= 0.1:
                shapes.append((label, polygon))
                break
    return shapes


def xywh(polygon: np.ndarray) -> List[float]:
    """Return the tight box of a polygon: left, top, width and height in pixels."""
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    return [round(float(value), 2) for value in (*low, *(high - low))]


def paint(rng: np.random.Generator, image: np.ndarray, polygon: np.ndarray) -> None:
    """Paint a textured shape with smooth edges and a contrasting color, in place."""
    size, fine = len(image), 4
    mask = np.zeros((fine * size, fine * size), np.float32)
    corners = np.round((polygon * fine - 0.5) * 16).astype(np.int32)  # pixel centers are at .5
    cv2.fillPoly(mask, [corners], 1, shift=4)
    mask = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA)
    color = covered = image[mask > 0.5].mean(axis=0)
    while np.linalg.norm(color - covered) < 80:
        color = rng.uniform(50, 205, 3)
    image += mask[..., None] * (texture(rng, color, size) - image)


def write_split(root: Path, split: str, num_images: int, settings: dict) -> None:
    """Write the images of a split and its annotation file."""
    size = settings['size']
    (root / split).mkdir(parents=True)
    images, annotations = [], []
    for i in track(range(num_images), description=f'Drawing {split} images'):
        # A random stream for every image, so that images do not depend on the size of a split.
        rng = np.random.default_rng([settings['seed'], SPLITS.index(split), i])
        image = texture(rng, rng.uniform(50, 205, 3), size)
        name = f'{i:06d}.jpg'
        images.append(dict(id=i, file_name=name, height=size, width=size))
        for label, polygon in place_shapes(rng, size):
            paint(rng, image, polygon)
            area = round(float(cv2.contourArea(polygon.astype(np.float32))), 2)
            annotations.append(dict(
                id=len(annotations) + 1, image_id=i, category_id=label + 1, bbox=xywh(polygon),
                area=area, segmentation=[polygon.round(2).ravel().tolist()], iscrowd=0))
        image += rng.normal(0, 5, image.shape)
        cv2.imwrite(str(root / split / name), image.clip(0, 255).astype(np.uint8),
                    [cv2.IMWRITE_JPEG_QUALITY, 95])
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    (root / f'{split}.json').write_text(json.dumps(dict(
        info=settings, images=images, annotations=annotations, categories=categories)))


def make_shapes(root: str, num_train: int = 2000, num_val: int = 300, size: int = 128,
                seed: int = 0) -> bool:
    """Write the data set unless it exists with the same settings; return whether it is written.

    Writes ``train/``, ``val/``, ``train.json`` and ``val.json`` into ``root``, all or none.
    ``size`` is height and width of an image in pixels.

    Raises:
        ConfigError: If a number is too small, or ``root`` has other files.
    """
    root = Path(root)
    settings = dict(version=VERSION, num_train=num_train, num_val=num_val, size=size, seed=seed)
    for name, least in MINIMUM.items():
        if settings[name] < least:
            option = name.replace('_', '-')
            raise ConfigError(f'--{option} {settings[name]} must be at least {least}.')
    try:
        made = json.loads((root / 'settings.json').read_text())
    except (OSError, ValueError):
        made = None
    if made == settings:
        return False
    ours = isinstance(made, dict) and made.keys() == settings.keys()
    if root.exists() and any(root.iterdir()) and not ours:
        raise ConfigError(f'{root} has files that would be lost: name another folder to write.')
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix='.shapes-') as temp:
        new = Path(temp, 'new')
        for split, num_images in zip(SPLITS, (num_train, num_val)):
            write_split(new, split, num_images, settings)
        (new / 'settings.json').write_text(json.dumps(settings))
        if root.exists():
            os.replace(root, Path(temp, 'old'))
        os.replace(new, root)
    return True
