"""Describe the preprocessing of images for an exported detector."""
import tempfile
from pathlib import Path
from typing import Any, Dict

import cv2
import mmcv
import mmdet.datasets.transforms
import numpy as np
from mmcv import transforms
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from torch import nn

from ..data.resize import DETRResize, fitted_size
from ..errors import ConfigError

RESIZES = {x._resize_img: x.__name__ for x in (
    transforms.Resize, mmdet.datasets.transforms.Resize, DETRResize)}  # not of subclasses
FITTED = dict(Resize=mmcv.image.rescale_size, DETRResize=fitted_size)
SIZES = 2 * ((480, 640), (333, 500), (640, 426), (97, 131))  # (h, w); twice, to find random steps


def describe_preprocessing(cfg: Config, preprocessor: nn.Module) -> Dict[str, Any]:
    """Describe a config's test pipeline and data preprocessor.

    The description is compared with the pipeline on random images.

    Returns:
        dict: ``mean`` and ``std`` of the channels, ``channels``, 'RGB' or 'BGR', and ``resize``, a
        dict of ``type``, a key of ``FITTED``, ``scale``, (width, height) or None, ``keep_ratio``
        and ``backend``, 'cv2' or 'pillow'.

    Raises:
        ConfigError: If the pipeline does more.
    """
    steps = Compose(cfg.test_dataloader.dataset.pipeline)
    steps.transforms = [x for x in steps.transforms if not isinstance(
        x, transforms.LoadAnnotations)]
    settings = cfg.model.get('data_preprocessor') or {}
    resize = dict(type='Resize', scale=None, keep_ratio=False, backend='cv2')
    for step in steps.transforms:
        if isinstance(step, transforms.RandomChoiceResize) and len(step.scales) == 1:
            step.resize.scale, step = step.scales[0], step.resize
        if name := RESIZES.get(getattr(type(step), '_resize_img', None)):
            resize = dict(type=name, scale=step.scale, backend=step.backend,
                          keep_ratio=getattr(step, 'fits', step.keep_ratio))
    description = dict(
        mean=list(settings.get('mean') or [0] * 3), std=list(settings.get('std') or [1] * 3),
        channels='RGB' if settings.get('bgr_to_rgb') or settings.get('rgb_to_bgr') else 'BGR',
        resize=resize)
    for size in SIZES:
        image = np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)
        wanted = preprocess(image, description)
        try:
            given, reason = run_pipeline(steps, preprocessor, image), ''
        except Exception as error:  # of any step
            given, reason = np.empty(0), f' ({error})'
        if given.shape != wanted.shape or not np.allclose(given, wanted, atol=1e-3):
            names = ', '.join(type(x).__name__ for x in steps.transforms)
            raise ConfigError(
                f'test_dataloader.dataset.pipeline ({names}) and model.data_preprocessor do more '
                'to an image than the file can describe, which is one Resize to a scale, RGB or '
                f'BGR, mean and std{reason}: change them for the export.')
    return description


def run_pipeline(steps: Compose, preprocessor: nn.Module, image: np.ndarray) -> np.ndarray:
    """Run the pipeline on a BGR image (h, w, 3); returns shape (channels, h, w)."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, 'image.png'))
        cv2.imwrite(path, image)
        data = steps(dict(img_path=path, img=image, img_id=0))
    return preprocessor(pseudo_collate([data]), False)['inputs'][0].numpy()


def preprocess(image: np.ndarray, description: Dict[str, Any]) -> np.ndarray:
    """Preprocess an image by a description, as ``examples/detect_onnx.py``; shapes as above."""
    resize, size = description['resize'], image.shape[1::-1]
    scale = tuple(resize['scale'] or size)
    size = FITTED[resize['type']](size, scale) if resize['keep_ratio'] else scale
    resized = mmcv.imresize(image, size, backend=resize['backend'])
    resized = resized[..., ::-1 if description['channels'] == 'RGB' else 1]
    pixels = (resized - np.float32(description['mean'])) / np.float32(description['std'])
    return pixels.transpose(2, 0, 1)
