"""A data set and a training that take seconds, for tests that run a whole command."""
import json
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Sequence

import cv2
import numpy as np
import torch
from builders import build, detector_config
from mmengine.config import Config
from mmengine.runner import Runner
from running import forget_runs

from groupdetr_mmdet import CheckedCocoDataset

CLASSES = ('red', 'green', 'blue')


def write_tiny_coco(folder: Path, num_train: int = 8, num_val: int = 4, size: int = 64) -> Path:
    """Write images of colored rectangles, whose color is the class, in COCO format.

    Args:
        folder (Path): Gets ``images/*.jpg``, ``train.json`` and ``val.json``.
        num_train (int): Training images. Defaults to 8.
        num_val (int): Validation images. Defaults to 4.
        size (int): Width and height of the images in pixels. Defaults to 64.
    """
    (folder / 'images').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, num_images in dict(train=num_train, val=num_val).items():
        coco = dict(
            images=[], annotations=[],
            categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)])
        for image_id in range(num_images):
            file_name = f'{split}_{image_id}.jpg'
            coco['images'].append(
                dict(id=image_id, file_name=file_name, width=size, height=size))
            image = np.full((size, size, 3), 127, np.uint8)
            for _ in range(rng.integers(1, 4)):
                coco['annotations'].append(
                    dict(draw_rectangle(image, rng), id=len(coco['annotations']) + 1,
                         image_id=image_id, iscrowd=0))
            cv2.imwrite(str(folder / 'images' / file_name), image)
        (folder / f'{split}.json').write_text(json.dumps(coco))
    return folder


def draw_rectangle(image: np.ndarray, rng: np.random.Generator) -> dict:
    """Draw a rectangle of random class and place, and return its annotation."""
    size = len(image)
    label = int(rng.integers(len(CLASSES)))
    width, height = (int(x) for x in rng.integers(size // 4, size // 2, 2))
    x, y = int(rng.integers(size - width)), int(rng.integers(size - height))
    image[y:y + height, x:x + width] = 0
    image[y:y + height, x:x + width, 2 - label] = 255  # OpenCV's images are BGR
    return dict(category_id=label + 1, bbox=[x, y, width, height], area=width * height)


def change_coco(folder: Path, damage: Callable[[dict], Any], split: str = 'train') -> None:
    """Apply a function to an annotation file; it changes the content, or returns another."""
    path = folder / f'{split}.json'
    coco = json.loads(path.read_text())
    path.write_text(json.dumps(damage(coco) or coco))


def checked_dataset(root: Path, split: str = 'train', test_mode: Optional[bool] = None,
                    classes: Sequence[str] = CLASSES, with_mask: bool = False,
                    cls: type = CheckedCocoDataset, filter_cfg: Optional[dict] = None,
                    load: str = 'CheckedLoadImageFromFile', **loader) -> CheckedCocoDataset:
    """Build the data set of a split; val is scored and not trained on, unless set otherwise."""
    return cls(
        data_root=str(root), ann_file=f'{split}.json', data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes), filter_cfg=filter_cfg,
        test_mode=split == 'val' if test_mode is None else test_mode, pipeline=[
            dict(type=load, **loader),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
            dict(type='PackDetInputs')])


def tiny_config(data_root: Path, **model) -> Config:
    """Config of a small detector that trains for two epochs on a data set of this module.

    Args:
        data_root (Path): Folder that :func:`write_tiny_coco` wrote.
        model: Arguments of ``builders.detector_config``.
    """
    dataset = dict(
        type='CocoDataset', data_root=f'{data_root}/', data_prefix=dict(img='images/'),
        metainfo=dict(classes=CLASSES))
    train_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))
    ]
    val_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackDetInputs',
             meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
    ]
    val_dataloader = dict(
        batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(dataset, ann_file='val.json', pipeline=val_pipeline, test_mode=True))
    val_evaluator = dict(type='CocoMetric', ann_file=f'{data_root}/val.json', metric='bbox')
    return Config(dict(
        custom_imports=dict(imports=['groupdetr_mmdet'], allow_failed_imports=False),
        default_scope='mmdet',
        model=dict(
            detector_config(num_classes=len(CLASSES), **model),
            data_preprocessor=dict(
                type='DetDataPreprocessor', mean=[127.] * 3, std=[64.] * 3, bgr_to_rgb=True)),
        train_dataloader=dict(
            batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(dataset, ann_file='train.json', pipeline=train_pipeline)),
        val_dataloader=val_dataloader,
        test_dataloader=val_dataloader,
        val_evaluator=val_evaluator,
        test_evaluator=val_evaluator,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
            clip_grad=dict(max_norm=0.1, norm_type=2)),
        param_scheduler=[dict(type='MultiStepLR', by_epoch=True, milestones=[1])],
        auto_scale_lr=dict(enable=False, base_batch_size=2),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=1),
            visualization=dict(type='DetVisualizationHook')),
        visualizer=dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')],
                        name='visualizer'),
        randomness=dict(seed=0)))


def tiny_runner(cfg: Config, folder: Path, **changes) -> Runner:
    """mmengine's runner of a config with some changes, in a work directory."""
    cfg = cfg.copy()
    cfg.work_dir = str(folder)
    cfg.merge_from_dict(changes)
    forget_runs()
    return Runner.from_cfg(cfg)


class Files(NamedTuple):
    """Files of a detector and its data set."""
    config: Path
    checkpoint: Path
    data: Path


def write_detector(folder: Path, **model) -> Files:
    """Write a config, a checkpoint and a data set.

    Args:
        folder (Path): Where to write.
        model: Arguments of ``builders.detector_config``.
    """
    data = write_tiny_coco(folder / 'coco')
    files = Files(folder / 'config.py', folder / 'weights.pth', data)
    config = tiny_config(data, **model)
    config.dump(files.config)
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=build_detector(config).state_dict()), files.checkpoint)
    return files


@torch.no_grad()
def build_detector(config: Config) -> torch.nn.Module:
    """Build a detector that does not start with the same box and score for every query."""
    detector = build({key: value for key, value in config.model.items()
                      if key != 'data_preprocessor'}).eval()
    head = detector.bbox_head
    for layer, std in ((head.fc_cls, 0.5), (head.fc_reg, 0.1)):
        torch.nn.init.normal_(layer.weight, std=std)
    return detector
