"""Write the config of a data set."""
import json
import math
import os
from pathlib import Path
from pprint import pformat
from typing import Any, Dict, Mapping, NamedTuple, Optional

import numpy as np
from mmengine.config import Config

from ..errors import ConfigError
from ..config import read_config
from ..io import write_atomically
from ..data.layouts import Dataset, has_objects, to_coco

SEEN_IMAGES = 20_000  # images in all epochs of a run
MANY_IMAGES = 2_000  # for training, with which a decoder from scratch gained from groups
EPOCHS = 12, 150  # least and most, as measured in docs/choose-k.md

CONFIG = """\
# groupdetr prepare {source}
# {images}, at most {most} objects in an image.
_base_ = {bases}

# Change these
image_size = {image_size}  # longer and shorter side, which images are resized to fit
num_query_groups = {num_query_groups}  # K; {why_groups}
max_epochs = {max_epochs}
lr = {lr:g}  # for {base_batch_size} images an update; scaled with the images of all processes
batch_size = {batch_size}  # images of a step in each process
load_from = {load_from!r}  # {why_weights}
{augmentation}

data_root = {data_root!r}  # of the images
annotations = "{{{{ fileDirname }}}}/{stem}_"  # COCO files beside this config
metainfo = dict(classes={classes})

model = dict(
    num_queries={num_queries},  # of a group; {why_queries}
    num_query_groups=num_query_groups,
    bbox_head=dict(num_classes={num_classes}))
train_pipeline = [*_base_.train_pipeline[:2], *augmentation, _base_.train_pipeline[-1]]
{mixing}test_pipeline = _base_.test_pipeline
test_pipeline[1].update(type='DETRResize', scale=image_size, backend='pillow')
dataset = dict(data_root=data_root, data_prefix=dict(img=''), metainfo=metainfo)
train_dataloader = dict(
    batch_size=batch_size,
    drop_last=False,
    dataset=dict(ann_file=annotations + 'train.json', pipeline=train_pipeline, **dataset))
dataset.update(pipeline=test_pipeline)
val_dataloader = dict(dataset=dict(ann_file=annotations + 'val.json', **dataset))
test_dataloader = dict(dataset=dict(ann_file=annotations + '{test}.json', **dataset))
val_evaluator = dict(ann_file=annotations + 'val.json')
test_evaluator = dict(ann_file=annotations + '{test}.json')

interval = max(1, max_epochs // 50)  # epochs between validations, and between checkpoints
train_cfg = dict(max_epochs=max_epochs, val_interval=interval)
milestone = max(1, round(max_epochs * 11 / 12))  # the learning rate falls here
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[milestone], gamma=0.1)]
optim_wrapper = dict(optimizer=dict(lr=lr))
auto_scale_lr = dict(enable=True, base_batch_size={base_batch_size})
default_hooks = dict(
    logger=dict(interval={log_interval}),
    checkpoint=dict(interval=interval, max_keep_ckpts=2, save_best='coco/bbox_mAP'))
"""
AUGMENTATIONS = dict(  # name -> transforms of training images
    light="""\
augmentation = [
    dict(type='RandomFlip', prob=0.5),
    dict(type='Resize', scale=image_size, keep_ratio=True, backend='pillow')
]""",
    detr="""\
scales = [(image_size[0], image_size[1] * i // 25) for i in range(15, 26)]
augmentation = [  # DETR's: flip; then resize, or resize, crop and resize
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[
        [dict(type='RandomChoiceResize', scales=scales, keep_ratio=True, backend='pillow')],
        [dict(type='RandomChoiceResize', keep_ratio=True, backend='pillow',
              scales=[(9999, image_size[1] * i // 8) for i in (4, 5, 6)]),
         dict(type='RandomCrop', crop_type='absolute_range', allow_negative_crop=True,
              crop_size=(image_size[1] * 12 // 25, image_size[1] * 3 // 4)),
         dict(type='RandomChoiceResize', scales=scales, keep_ratio=True, backend='pillow')]])
]""")
AUGMENTATIONS['strong'] = f"""\
strong_epochs = max_epochs * 3 // 4  # also with Mosaic, MixUp and colors
{AUGMENTATIONS['detr']}"""
MIXING = """\
unmixed_pipeline = train_pipeline
train_pipeline = [*unmixed_pipeline[:2], *_base_.strong_augmentation, *unmixed_pipeline[2:]]
custom_hooks = [dict(
    type='PipelineSwitchHook', switch_epoch=strong_epochs, switch_pipeline=unmixed_pipeline)]
"""
SCOPE = 'groupdetr_mmdet::group_detr'


class Model(NamedTuple):
    """A detector for ``--model``."""
    base: str  # name of the shipped config
    weights: Optional[str]  # trained on COCO
    augment: str = 'detr'  # a key of AUGMENTATIONS


MODELS = dict(
    cond=Model('group_cond_detr_r50_12e', 'groupdetr://group_cond_detr_r50_12e'),
    dab=Model('group_dab_detr_r50_12e', 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco'),
    deformable=Model('group_deformable_detr_r50_12e',
                     'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco'),
    dino=Model('group_dino_4scale_r50_12e', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco'),
    small=Model('group_cond_detr_mbv2_30e', None, 'light'))


def complete_splits(dataset: Dataset, val_fraction: float, seed: int) -> None:
    """Make a missing validation split, from the test split or else from training images."""
    splits = dataset.splits
    if splits.get('val'):
        return
    if splits.get('test'):
        splits['val'] = splits.pop('test')
        dataset.notes.append('there is no split val, so test is used for validation')
        return
    images = splits['train']
    num_val = min(max(1, round(val_fraction * len(images))), len(images) - 1)
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    order.sort(key=lambda i: not has_objects([images[i]]))
    # The same fraction of images with and without objects
    chosen = {order[i * len(images) // num_val] for i in range(num_val)}
    splits['val'] = [image for i, image in enumerate(images) if i in chosen]
    splits['train'] = [image for i, image in enumerate(images) if i not in chosen]
    if not (has_objects(splits['train']) and has_objects(splits['val'])):
        raise ConfigError('DATA has too few images with objects: training and '
                          'validation require one each.')
    dataset.notes.append(f'images drawn for validation with seed {seed}: {num_val}')


def write_training(dataset: Dataset, data: str, out: Path, model: Model,
                   load_from: Optional[str], saved: Mapping[str, int],
                   image_size: Optional[int] = None, augment: Optional[str] = None) -> None:
    """Write the annotations as ``STEM_SPLIT.json``, and the config beside them.

    Args:
        dataset (Dataset): The splits.
        data (str): Folder or file of the user, for the first line of the config.
        out (Path): Config to write.
        model (Model): The detector.
        load_from (str, optional): Weights to start from.
        saved (Mapping): ``num_queries`` and ``num_query_groups`` if ``load_from`` has them.
        image_size (int, optional): Shorter side of images in pixels. Defaults to the model's.
        augment (str, optional): A key of ``AUGMENTATIONS``. Defaults to the model's.
    """
    for split, images in dataset.splits.items():
        coco = to_coco(images, dataset.classes, dataset.root)
        write_atomically(out.with_name(f'{out.stem}_{split}.json'), json.dumps(coco).encode())
    base, splits = read_config(model.base), dataset.splits
    num_train, batch_size = len(splits['train']), base.train_dataloader.batch_size
    longer, shorter = base.test_pipeline[1].scale
    image_size, augment = image_size or shorter, augment or model.augment
    write_atomically(out, CONFIG.format(
        source=repr(os.path.abspath(data))[1:-1], stem=out.stem,
        images=', '.join(f'{len(x)} images for {split}' for split, x in splits.items()),
        data_root=f'{dataset.root}{os.sep}', num_classes=len(dataset.classes),
        classes=pformat(tuple(dataset.classes), width=75, compact=True).replace('\n', '\n   '),
        max_epochs=int(np.clip(math.ceil(SEEN_IMAGES / num_train), *EPOCHS)),
        batch_size=batch_size, image_size=(image_size * longer // shorter, image_size),
        test='test' if splits.get('test') else 'val',
        base_batch_size=base.auto_scale_lr.base_batch_size,
        log_interval=max(1, min(50, num_train // batch_size // 4)), load_from=load_from,
        **describe_start(model, base, load_from, saved, num_train),
        **describe_images(model, augment), **describe_queries(
            dataset, load_from and saved.get('num_queries', base.model.num_queries),
            augment)).encode())


def describe_start(model: Model, base: Config, load_from: Optional[str],
                   saved: Mapping[str, int], num_train: int) -> Dict[str, Any]:
    """Return K and the learning rate for the weights, as measured in docs/choose-k.md."""
    lr = base.optim_wrapper.optimizer.lr
    if not load_from:
        return dict(lr=lr, num_query_groups=3 if num_train >= MANY_IMAGES else 1,
                    why_groups=f'3 were ahead on {MANY_IMAGES} images, and not on 200')
    # Other weights than model.weights are mmdet's, without groups
    groups = saved.get('num_query_groups',
                       base.model.num_query_groups if load_from == model.weights else 1)
    return dict(lr=2 * lr, num_query_groups=groups,
                why_groups='as many as the weights have' if groups > 1 else
                'more gained nothing after equal time with weights without groups')


def describe_images(model: Model, augment: str) -> Dict[str, str]:
    """Return the bases and the augmentation of the config."""
    strong, base = augment == 'strong', f"'{SCOPE}/{model.base}.py'"
    mixed = f"[{base},\n          '{SCOPE}/_base_/strong_augmentation.py']"
    return dict(bases=mixed if strong else base, augmentation=AUGMENTATIONS[augment],
                mixing=MIXING if strong else '')


def describe_queries(dataset: Dataset, of_weights: Optional[int], augment: str) -> Dict[str, Any]:
    """Return the number of queries, of the weights or for the objects of an image, and why."""
    most = max(len(image.boxes) for images in dataset.splits.values() for image in images)
    if of_weights:
        return dict(most=most, num_queries=of_weights, why_queries='as many as the weights have',
                    why_weights='new classification layers for other classes')
    factor = 3 if augment == 'strong' else 1.5  # a mixed image has about twice the objects
    return dict(most=most, num_queries=max(20, math.ceil(most * factor / 10) * 10),
                why_queries=f'{factor:g} for each object of the fullest image',
                why_weights='only the backbone has weights, of ImageNet')
