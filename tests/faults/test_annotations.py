"""Faults of a data set, each as one change of a sound one: refused, or counted in a warning."""
import math
import os

import cv2
import numpy as np
import pytest
from layout_builders import write_exif
from tiny import change_coco
from tiny import checked_dataset as build

from groupdetr_mmdet.errors import ConfigError

NAN, INF = math.nan, math.inf


def first(part, **fields):
    """A change of fields of the second entry of a part."""
    return lambda coco: coco[part][1].update(fields)


def all_have(**fields):
    return lambda coco: [ann.update(fields) for ann in coco['annotations']] and None


def without(part, field):
    return lambda coco: coco[part][1].pop(field) and None


def repeated(part):
    return lambda coco: coco[part].append(dict(coco[part][1]))


FIELD = "' must be"
# The change, and what the sentence names.
ALWAYS_REFUSED = {
    'left inf': (first('annotations', bbox=[INF, 1, 5, 5]), 'id 2'),
    'a number beyond float': (first('annotations', bbox=[1, 1, 10**400, 5]), 'id 2'),
    'bbox short': (first('annotations', bbox=[1, 1, 5]), 'bbox' + FIELD),
    'area null': (first('annotations', area=None), 'area' + FIELD),
    'iscrowd text': (first('annotations', iscrowd='0'), 'iscrowd' + FIELD),
    'category a list': (first('annotations', category_id=[1]), 'category_id' + FIELD),
    'ids of two kinds': (first('images', id='1'), 'id' + FIELD),
    'image twice': (repeated('images'), '2 images with id 1'),
    'category twice': (repeated('categories'), '2 categories with id 2'),
    'height zero': (first('images', height=0), 'height' + FIELD),
    'size of other images': (first('images', width=640, height=640), '64 x 64 pixels when'),
    'file_name empty': (first('images', file_name=''), 'file_name' + FIELD),
    'file_name with NUL': (first('images', file_name='a\0.jpg'), 'file_name' + FIELD),
    'file_name a folder': (first('images', file_name='.'), 'a folder and not a file'),
    'file_name elsewhere': (first('images', file_name='no.jpg'), 'of ann_file'),
    'category name empty': (first('categories', name=' '), "of the dataset has ['green'], which"),
    'no bbox': (without('annotations', 'bbox'), 'bbox' + FIELD),
    'images an object': (lambda coco: dict(coco, images=dict(a=1)), 'images must be a list'),
    'no images': (lambda coco: dict(coco, images=[]), 'has no images'),
    'annotations null': (lambda coco: dict(coco, annotations=None), 'annotations must be a list'),
    'no categories': (lambda coco: dict(coco, categories=[]), 'metainfo.classes'),
    'top level a list': (lambda coco: [coco], "COCO's format"),
    'crowds only': (all_have(iscrowd=1), '0 of 8 images have a usable box'),
    'unknown categories': (all_have(category_id=9), '0 of 8 images have a usable box'),
    'all outside': (all_have(bbox=[500, 500, 9, 9]), '0 of 8 images have a usable box'),
    'normalized boxes': (lambda coco: [ann.update(bbox=[x / 64 for x in ann['bbox']])
                                       for ann in coco['annotations']] and None, 'fractions'),
}
# Left out of a training; an evaluation counts them as pycocotools does. One warning in each.
WARNED = {
    'negative width': (first('annotations', bbox=[30, 30, -20, 5]), 'without width or height'),
    'zero height': (first('annotations', bbox=[30, 30, 20, 0]), 'without width or height'),
    'outside': (first('annotations', bbox=[300, 30, 20, 9]), 'outside of their image'),
    'left of it': (first('annotations', bbox=[-30, 30, 20, 9]), 'outside of their image'),
    'no image': (first('annotations', image_id=77), 'belong to no image'),
    'negative area': (first('annotations', area=-4), 'area'),
}
NAN_BOX = first('annotations', bbox=[1, NAN, 5, 5])  # left out of a training, no number in a score
HUGE = first('annotations', bbox=[1, 1, 1e30, 5])  # not found in an evaluation, but trained on


def refusal(root, **kwargs):
    with pytest.raises(ConfigError) as error:
        build(root, **kwargs)
    message = str(error.value)
    assert '\n' not in message and len(message) < 500
    return message


@pytest.mark.parametrize('test_mode', [False, True], ids=['train', 'val'])
@pytest.mark.parametrize('name', ALWAYS_REFUSED)
def test_what_cannot_be_right_is_refused(tiny_coco, name, test_mode):
    damage, words = ALWAYS_REFUSED[name]
    change_coco(tiny_coco, damage)
    assert words in refusal(tiny_coco, test_mode=test_mode)


def count_objects(dataset):
    return sum(len(dataset.get_data_info(i)['instances']) for i in range(len(dataset)))


@pytest.mark.parametrize('name', WARNED)
def test_an_annotation_that_cannot_be_found_gets_a_warning(tiny_coco, name, warnings_logged):
    damage, words = WARNED[name]
    objects = count_objects(build(tiny_coco))
    assert warnings_logged() == []
    change_coco(tiny_coco, damage)
    assert count_objects(build(tiny_coco)) == objects - 1
    build(tiny_coco, test_mode=True)
    trained, *scored = warnings_logged()  # one sentence is not logged twice
    for message in (trained, *scored):
        assert words in message and 'id 2' in message
    assert len(scored) == (name != 'no image')


@pytest.mark.parametrize(('damage', 'refused'), [(NAN_BOX, True), (HUGE, False)],
                         ids=['NaN', '1e30'])
def test_what_makes_a_result_meaningless_is_refused_where_it_does(tiny_coco, damage, refused,
                                                                  warnings_logged):
    change_coco(tiny_coco, damage)
    assert 'id 2' in refusal(tiny_coco, test_mode=refused)
    build(tiny_coco, test_mode=not refused)
    assert len(warnings_logged()) == 1


def test_warnings_are_one_for_each_kind(tiny_coco, warnings_logged):
    def damage(coco):
        for i, ann in enumerate(coco['annotations'][:5]):
            ann['bbox'] = [1, 1, NAN, 5] if i < 3 else [900, 900, 5, 5]

    change_coco(tiny_coco, damage)
    build(tiny_coco)
    assert [message.split()[0] for message in warnings_logged()] == ['3', '2']


ENCODINGS = {
    'Latin-1': lambda text: text.replace('red', 'grün').encode('latin-1'),
    'UTF-16': lambda text: text.encode('utf-16'),
    'cut': lambda text: text.encode()[:len(text) // 2],
    'empty': lambda text: b'',
    'null': lambda text: b'null',
}


@pytest.mark.parametrize('name', ENCODINGS)
def test_a_file_that_is_no_json_object_is_refused(tiny_coco, name):
    path = tiny_coco / 'train.json'
    path.write_bytes(ENCODINGS[name](path.read_text()))
    assert str(path) in refusal(tiny_coco)


def test_what_is_listed_twice_gets_a_warning(tiny_coco, warnings_logged):
    change_coco(tiny_coco, repeated('annotations'))
    change_coco(tiny_coco, lambda coco: coco['images'].append(dict(coco['images'][0], id=99)))
    build(tiny_coco)
    image, annotation = warnings_logged()
    assert "2 entries with file_name 'train_0.jpg'" in image and '2 entries with id' in annotation


def test_a_test_set_without_annotations_can_be_read(tiny_coco):
    change_coco(tiny_coco, lambda coco: coco.pop('annotations') and None)
    assert len(build(tiny_coco, test_mode=True)) == 8
    assert 'annotations must be a list' in refusal(tiny_coco)


IMAGES = {
    'empty': lambda path: path.write_bytes(b''),
    'cut': lambda path: path.write_bytes(path.read_bytes()[:-40]),
    'text': lambda path: path.write_text('not an image'),
    'pipe': lambda path: (path.unlink(), os.mkfifo(path)),
    'device': lambda path: (path.unlink(), path.symlink_to('/dev/zero')),
    'dangling link': lambda path: (path.unlink(), path.symlink_to(path.parent / 'nowhere')),
    'another size': lambda path: cv2.imwrite(str(path), np.zeros((32, 32, 3))),
}


@pytest.mark.parametrize('name', IMAGES)
def test_a_broken_image_is_found_before_the_first_step_and_later(tiny_coco, name):
    path, dataset = tiny_coco / 'images/train_3.jpg', build(tiny_coco)
    IMAGES[name](path)
    for test_mode in (False, True):
        assert str(path) in refusal(tiny_coco, test_mode=test_mode)
    assert dataset[1]['inputs'].shape == (3, 64, 64)
    with pytest.raises(ConfigError, match='train_3.jpg'):
        dataset[3]


def test_an_image_that_exif_turns_must_have_turned_boxes(tiny_coco):
    write_exif(tiny_coco / 'images/train_3.jpg', 6, (48, 64))
    change_coco(tiny_coco, lambda coco: coco['images'][3].update(width=64, height=48))
    message = refusal(tiny_coco)
    assert '48 x 64 pixels when it is read and 64 x 48' in message and 'EXIF' in message
    assert len(build(tiny_coco, color_type='color_ignore_orientation')) == 8
