"""Data that are right, or that a library misread: what training and evaluation make of them."""
from types import SimpleNamespace

import cv2
import mmcv
import numpy as np
import pytest
import torch
from layout_builders import rle_of, write_exif, write_huge
from mmdet.datasets import ConcatDataset
from mmdet.evaluation import CocoMetric
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from tiny import CLASSES, change_coco, tiny_config, write_tiny_coco
from tiny import checked_dataset as build

from groupdetr_mmdet import CheckedCocoMetric, GroupCocoMetric
from groupdetr_mmdet.errors import ConfigError, warn_once
from groupdetr_mmdet.training.runner import build_runner, check_data


@pytest.fixture
def root(tmp_path):
    warn_once.cache_clear()
    return write_tiny_coco(tmp_path / 'coco', num_val=8)


def detections(root):
    """Boxes beside the true ones, labels and scores of each image, by its name."""
    found, rng = {}, np.random.default_rng(1)
    for entry in build(root, 'val'):
        truth = entry['data_samples'].gt_instances
        boxes = truth.bboxes.tensor.repeat(2, 1)
        boxes = boxes + torch.from_numpy(rng.normal(0, 2, boxes.shape)).float()
        labels = truth.labels.repeat(2)
        labels[::5] = rng.integers(3)
        found[entry['data_samples'].img_path] = InstanceData(
            bboxes=boxes, labels=labels, scores=torch.from_numpy(rng.random(len(boxes))).float())
    return found


def evaluate(root, found, cls=CheckedCocoMetric, **kwargs):
    """All metrics of detections, also of each class."""
    metric = cls(ann_file=str(root / 'val.json'), **dict(dict(classwise=True), **kwargs))
    dataset = build(root, 'val')
    metric.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        instances = found[info['img_path']]
        instances.query_groups = torch.zeros_like(instances.labels)
        metric.process({}, [dict(
            img_id=info['img_id'], ori_shape=(64, 64), pred_instances=instances,
            group_instances=instances, query_group=0)])
    return metric.evaluate(len(dataset))


def each(part, change):
    """A change of the fields of every entry, by its position."""
    return lambda coco: [entry.update(change(i, entry)) for i, entry in enumerate(coco[part])] \
        and None


def renamed(part, field, rename):
    """Other ids of the entries of a part, also in the annotations."""
    def change(coco):
        for key, entries in (('id', coco[part]), (field, coco['annotations'])):
            for entry in entries:
                entry[key] = rename(entry[key])

    return change


renumber_categories = renamed('categories', 'category_id', lambda x: 40 - 10 * x)


def add_annotation(**fields):
    return lambda coco: coco['annotations'].append(
        dict(coco['annotations'][0], id=999, **fields))


SAME_AP = {
    'categories in another order': lambda coco: coco['categories'].reverse(),
    'categories numbered in another order': renumber_categories,
    'a category that is not asked for': lambda coco: coco['categories'].insert(
        0, dict(id=77, name='black')),
    'annotation ids 0, 1, ...': each('annotations', lambda i, _: dict(id=i)),
    'annotation ids "0", "1", ...': each('annotations', lambda i, _: dict(id=str(i))),
    'annotation ids are UUIDs': each('annotations', lambda i, _: dict(id=f'{i}-7d1e-4c3b')),
    'image ids are texts': renamed('images', 'image_id', 'no. {}'.format),
    'no iscrowd': lambda coco: [ann.pop('iscrowd') for ann in coco['annotations']] and None,
    'a crowd without size': add_annotation(bbox=[9, 9, 0, 5], iscrowd=1, area=0),
    'an annotation of an image that is not listed': add_annotation(image_id=1234),
}


@pytest.mark.parametrize('name', SAME_AP)
@pytest.mark.parametrize('metric', [CheckedCocoMetric, GroupCocoMetric])
def test_the_ap_is_that_of_the_sound_file(root, name, metric):
    found = detections(root)
    sound = evaluate(root, found, CocoMetric)
    assert .1 < sound['coco/bbox_mAP'] < .9
    change_coco(root, SAME_AP[name], 'val')
    ours = evaluate(root, found, metric)
    assert {key: ours[key] for key in sound} == sound


@pytest.mark.parametrize('change', [
    add_annotation(bbox=[9, 9, 0, 5]), add_annotation(bbox=[9, 9, 5, 5], area=-1),
    add_annotation(bbox=[900, 9, 5, 5]), each('annotations', lambda i, _: dict(area=9 * i))],
    ids=['no width', 'negative area', 'outside', 'areas of masks'])
def test_an_evaluation_counts_as_pycocotools_counts(root, change):
    found = detections(root)
    change_coco(root, change, 'val')
    assert evaluate(root, found) == evaluate(root, found, CocoMetric)


@pytest.mark.parametrize('iou_thrs', [.5, [.5], [.5, .5]])
def test_ap_of_chosen_overlaps_is_their_mean(root, iou_thrs):
    found = detections(root)
    chosen = evaluate(root, found, iou_thrs=iou_thrs, metric_items=['mAP'], classwise=False)
    assert chosen['coco/bbox_mAP'] == evaluate(root, found)['coco/bbox_mAP_50']


def test_parts_of_a_training_set_may_list_classes_in_different_orders(root):
    whole = ConcatDataset([build(root), build(root)])
    labels = [x['data_samples'].gt_instances.labels.tolist() for x in whole]
    change_coco(root, renumber_categories)
    change_coco(root, lambda coco: coco['categories'].reverse())
    other = ConcatDataset([build(root), build(root)])
    assert [x['data_samples'].gt_instances.labels.tolist() for x in other] == labels


@pytest.mark.parametrize('dataset', ['CocoDataset', 'mmdet.CocoDataset', 'MyDataset'])
def test_labels_of_data_and_metric_go_together(root, dataset):
    """A data set of one's own numbers classes as mmdet does, and so does its metric."""
    cfg = Config(dict(tiny_config(root)))
    cfg.merge_from_dict({'val_dataloader.dataset.type': dataset})
    cfg.val_evaluator = dict(type='MultiDatasetsEvaluator', metrics=[cfg.val_evaluator])
    check_data(cfg)
    metric, = cfg.val_evaluator.metrics
    assert metric.type == 'CheckedCocoMetric'
    assert metric.by_name == (cfg.val_dataloader.dataset.type == 'CheckedCocoDataset')
    change_coco(root, lambda coco: coco['categories'].reverse(), 'val')
    built = CheckedCocoMetric(str(root / 'val.json'), by_name=metric.by_name)
    built.dataset_meta = dict(classes=CLASSES)
    assert built.label_categories() == ([1, 2, 3] if metric.by_name else [3, 2, 1])


def polygon_of(annotation):
    left, top, width, height = annotation['bbox']
    return [[left, top, left + width, top, left + width, top + height]]


def with_masks(segmentation):
    """A segmentation of the first annotation, and polygons of all other annotations."""
    return each('annotations', lambda i, annotation: dict(
        segmentation=(polygon_of if i else segmentation)(annotation)))


NO_MASKS = {
    'an RLE that ends early': lambda x: rle_of(x, 4),
    'an RLE of another image': lambda x: dict(rle_of(x), size=[32, 128]),
    'runs that end early': lambda x: dict(size=[64, 64], counts=[9, 9]),
    'four numbers': lambda x: x['bbox'],
    'nothing': lambda x: [],
}


@pytest.mark.parametrize('name', NO_MASKS)
def test_a_segmentation_that_no_library_can_read_is_refused_where_masks_are_used(root, name):
    for split in ('train', 'val'):
        change_coco(root, with_masks(NO_MASKS[name]), split)
        build(root, split)
        with pytest.raises(ConfigError, match='id 1 '):
            build(root, split, with_mask=True)
    evaluate(root, detections(root))
    with pytest.raises(ConfigError, match='id 1 '):
        CheckedCocoMetric(str(root / 'val.json'), metric=['bbox', 'segm'])


@pytest.mark.parametrize('polygons', [[[]], [[1, 2, 3, 4]]])
def test_a_polygon_without_corners_is_left_out_of_a_training(root, polygons, warnings_logged):
    for split in ('train', 'val'):
        change_coco(root, with_masks(lambda x: polygons), split)
    objects = sum(len(x['data_samples'].gt_instances) for x in build(root))
    assert sum(len(x['data_samples'].gt_instances) for x in build(root, with_mask=True)) \
        == objects - 1
    assert 'polygon' in warnings_logged()[0]
    build(root, 'val', with_mask=True)
    with pytest.raises(ConfigError, match='polygon'):
        CheckedCocoMetric(str(root / 'val.json'), metric='segm')


@pytest.mark.parametrize('segmentation', [
    polygon_of, rle_of, lambda x: polygon_of(x) + [[1, 2]],
    lambda x: dict(size=[64, 64], counts=[64 * 63, 64])])
def test_masks_that_a_library_reads_are_taken(root, segmentation, warnings_logged):
    for split in ('train', 'val'):
        change_coco(root, with_masks(segmentation), split)
    assert build(root, with_mask=True)[0]['data_samples'].gt_instances.masks.masks.any()
    CheckedCocoMetric(str(root / 'val.json'), metric=['bbox', 'segm'])
    assert warnings_logged() == []


@pytest.mark.parametrize('orientation', [0, 1, 9, 65537, 5, 6, 7, 8])
def test_an_exif_orientation_turns_as_in_the_decoder(root, orientation, warnings_logged):
    height, width = (64, 48) if orientation in range(5, 9) else (48, 64)
    write_exif(root / 'images/train_0.jpg', orientation, (48, 64))
    change_coco(root, lambda coco: coco['images'][0].update(height=height, width=width))
    assert build(root)[0]['data_samples'].ori_shape == (height, width)
    assert 'turned' not in ' '.join(warnings_logged())


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_an_image_is_what_its_decoder_reads(root, dtype, monkeypatch):
    """tifffile reads six channels, or floats, which OpenCV and Pillow do not."""
    monkeypatch.setattr(mmcv.image.io, 'tifffile', SimpleNamespace(imread=np.load))
    for path in (root / 'images').iterdir():
        with path.open('wb') as file:
            np.save(file, np.ones((64, 64, 6), dtype))
    loader = dict(imdecode_backend='tifffile', color_type='unchanged')
    assert build(root, **loader)[0]['inputs'].shape == (6, 64, 64)
    build(root, 'val', load='LoadImageFromFile', **loader)


def test_an_image_above_two_to_the_thirtieth_pixels_is_named(root):
    dataset = build(root)
    for split in ('train', 'val'):
        write_huge(root / f'images/{split}_0.jpg')
        with pytest.raises(ConfigError, match=r'^.*_0.jpg .*2\*\*30.*$'):
            build(root, split)
    with pytest.raises(ConfigError, match=r'train_0.jpg .*2\*\*30'):
        dataset[0]


def test_twelve_bits_in_sixteen_get_one_warning(root, warnings_logged):
    def write(largest):
        for path in (root / 'images').iterdir():
            image = np.full((64, 64, 3), largest, np.uint16)
            path.write_bytes(cv2.imencode('.png', image)[1].tobytes())

    write(65535)
    build(root)
    assert warnings_logged() == []
    write(4095)
    build(root, color_type='unchanged')
    assert warnings_logged() == []
    assert build(root)[0]['inputs'].max() == 15
    message, = warnings_logged()
    assert '4095' in message and '0 to 15' in message


def test_what_a_transform_of_ones_own_raises_is_shown_as_it_is(root):
    dataset = build(root)
    dataset.pipeline.transforms.insert(1, lambda results: results['no such key'])
    with pytest.raises(KeyError, match='no such key'):
        dataset[0]


class Oracle(BaseDetector):
    """Finds the annotations of the sound file, with labels by the names of the classes."""

    def __init__(self, found, data_preprocessor):
        super().__init__(data_preprocessor)
        self.found = found

    def predict(self, batch_inputs, batch_data_samples):
        return self.add_pred_to_datasample(
            batch_data_samples, [self.found[x.img_path] for x in batch_data_samples])

    loss = extract_feat = _forward = predict


@pytest.mark.parametrize('name', [*SAME_AP][:3])
def test_a_config_of_mmdets_classes_gets_the_ap_of_the_sound_file(root, tmp_path, name):
    found, cfg = detections(root), tiny_config(root)
    sound = evaluate(root, found, CocoMetric)
    change_coco(root, SAME_AP[name], 'val')
    cfg.work_dir = str(tmp_path / 'work')
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler',
                'val_dataloader', 'val_cfg', 'val_evaluator', 'auto_scale_lr', 'default_hooks'):
        cfg.pop(key)
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 96)
    model, cfg.model = cfg.model, dict(type='Oracle')
    runner_type = type('OracleRunner', (Runner, ), dict(build_model=lambda self, _: Oracle(
        found, model.data_preprocessor)))
    metrics = build_runner(cfg, runner_type).test()
    assert metrics['coco/bbox_mAP'] == sound['coco/bbox_mAP']
