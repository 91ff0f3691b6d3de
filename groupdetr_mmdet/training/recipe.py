"""A training for a data set of one's own: splits, numbers, and the config."""
import json
import math
import os
from pathlib import Path
from pprint import pformat
from typing import NamedTuple, Optional

import numpy as np

from ..errors import ConfigError
from ..config import read_config
from ..io import write_atomically
from ..data.layouts import Dataset, has_objects, to_coco

SEEN_IMAGES = 20_000  # images that a training sees, whatever their number
EPOCHS = 12, 50  # at least, at most
LAST_EPOCHS = 11 / 12  # of a training, where the learning rate falls, as in the official recipe

CONFIG = """\
# groupdetr prepare {source}
# {images}, at most {most} objects in one.
_base_ = 'groupdetr_mmdet::group_detr/{base}.py'

data_root = {data_root!r}  # of the images
annotations = "{{{{ fileDirname }}}}/{stem}_"  # COCO files beside this one
metainfo = dict(classes={classes})
max_epochs = {max_epochs}

model = dict(
    num_queries={num_queries},  # of a group; {why_queries}
    num_query_groups={num_query_groups},  # K: more take longer in training, and nothing later
    bbox_head=dict(num_classes={num_classes}))
dataset = dict(data_root=data_root, data_prefix=dict(img=''), metainfo=metainfo)
train_dataloader = dict(
    batch_size={batch_size},  # of a process
    drop_last=False,
    dataset=dict(ann_file=annotations + 'train.json', **dataset))
val_dataloader = dict(dataset=dict(ann_file=annotations + 'val.json', **dataset))
test_dataloader = dict(dataset=dict(ann_file=annotations + '{test}.json', **dataset))
val_evaluator = dict(ann_file=annotations + 'val.json')
test_evaluator = dict(ann_file=annotations + '{test}.json')

train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[{milestone}], gamma=0.1)]
# lr is for steps of base_batch_size images, and follows how many all processes have together.
optim_wrapper = dict(optimizer=dict(lr={lr:g}))
auto_scale_lr = dict(enable=True, base_batch_size={base_batch_size})
default_hooks = dict(
    logger=dict(interval={log_interval}),
    checkpoint=dict(interval=1, max_keep_ckpts=2, save_best='coco/bbox_mAP'))
load_from = {load_from!r}  # {why_weights}
"""


class Model(NamedTuple):
    """A detector to begin with."""
    base: str  # name of the shipped config
    weights: Optional[str]  # trained on COCO


MODELS = dict(
    cond=Model('group_cond_detr_r50_12e', 'groupdetr://group_cond_detr_r50_12e'),
    dab=Model('group_dab_detr_r50_12e', 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco'),
    deformable=Model('group_deformable_detr_r50_12e',
                     'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco'),
    dino=Model('group_dino_4scale_r50_12e', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco'),
    small=Model('group_cond_detr_mbv2_30e', None))


def complete_splits(dataset: Dataset, val_fraction: float, seed: int) -> None:
    """Use the test split for validation where there is none, or else draw training images."""
    splits = dataset.splits
    if splits.get('val'):
        return
    if splits.get('test'):
        splits['val'] = splits.pop('test')
        dataset.notes.append('there is no split val, and test serves as it')
        return
    images = splits['train']
    num_val = min(max(1, round(val_fraction * len(images))), len(images) - 1)
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    order.sort(key=lambda i: not has_objects([images[i]]))
    # The same part of the images with objects and of those without.
    chosen = {order[i * len(images) // num_val] for i in range(num_val)}
    splits['val'] = [image for i, image in enumerate(images) if i in chosen]
    splits['train'] = [image for i, image in enumerate(images) if i not in chosen]
    if not (has_objects(splits['train']) and has_objects(splits['val'])):
        raise ConfigError('DATA has too few images with objects: a training needs one and a '
                          'validation another.')
    dataset.notes.append(f'images drawn for validation with seed {seed}: {num_val}')


def write_training(dataset: Dataset, data: str, out: Path, model: Model,
                   load_from: Optional[str]) -> None:
    """Write the annotations as ``STEM_SPLIT.json``, and the config beside them."""
    for split, images in dataset.splits.items():
        coco = to_coco(images, dataset.classes, dataset.root)
        write_atomically(out.with_name(f'{out.stem}_{split}.json'), json.dumps(coco).encode())
    base, splits = read_config(model.base), dataset.splits
    num_train, batch_size = len(splits['train']), base.train_dataloader.batch_size
    most = max(len(image.boxes) for images in splits.values() for image in images)
    epochs = int(np.clip(math.ceil(SEEN_IMAGES / num_train), *EPOCHS))
    why = (('as many as the weights have', 'its class layers are left out') if load_from else
           ('half as many again as objects in an image',
            'the backbone alone begins with weights, of ImageNet'))
    write_atomically(out, CONFIG.format(
        source=repr(os.path.abspath(data))[1:-1], base=model.base, stem=out.stem,
        images=', '.join(f'{len(x)} images for {split}' for split, x in splits.items()),
        most=most, data_root=f'{dataset.root}{os.sep}', num_classes=len(dataset.classes),
        classes=pformat(tuple(dataset.classes), width=75, compact=True).replace('\n', '\n   '),
        max_epochs=epochs, milestone=round(epochs * LAST_EPOCHS), batch_size=batch_size,
        num_query_groups=base.model.num_query_groups, why_queries=why[0], why_weights=why[1],
        num_queries=base.model.num_queries if load_from else
        max(20, math.ceil(most * 1.5 / 10) * 10), test='test' if splits.get('test') else 'val',
        lr=base.optim_wrapper.optimizer.lr, base_batch_size=base.auto_scale_lr.base_batch_size,
        log_interval=max(1, min(50, num_train // batch_size // 4)), load_from=load_from).encode())
