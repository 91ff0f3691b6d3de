"""Faults of a data set, each as one change of a sound one: refused, or counted in a warning."""
import math
import os

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image
from tiny import CLASSES, change_coco, write_tiny_coco

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.errors import warn_once
from groupdetr_mmdet.data.coco import CheckedCocoDataset
from groupdetr_mmdet.data.images import find_missing

NAN, INF = math.nan, math.inf


@pytest.fixture
def root(tmp_path):
    init_default_scope('mmdet')
    warn_once.cache_clear()
    return write_tiny_coco(tmp_path / 'coco')


def build(root, test_mode=False, classes=CLASSES, scale=(64, 64), **loader):
    return CheckedCocoDataset(
        data_root=str(root), ann_file='train.json', data_prefix=dict(img='images/'),
        metainfo=dict(classes=classes), test_mode=test_mode, pipeline=[
            dict(type='CheckedLoadImageFromFile', **loader),
            dict(type='Resize', scale=scale, keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')])


def first(part, **fields):
    """A change of fields of the second entry of a part."""
    return lambda coco: coco[part][1].update(fields)


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
    'bbox of texts': (first('annotations', bbox=['1', '1', '5', '5']), 'id 2'),
    'area null': (first('annotations', area=None), 'area' + FIELD),
    'iscrowd text': (first('annotations', iscrowd='0'), 'iscrowd' + FIELD),
    'category a list': (first('annotations', category_id=[1]), 'category_id' + FIELD),
    'image_id NaN': (first('annotations', image_id=NAN), 'image_id' + FIELD),
    'image twice': (repeated('images'), '2 images with id 1'),
    'category twice': (repeated('categories'), '2 categories with id 2'),
    'width text': (first('images', width='64'), 'width' + FIELD),
    'height zero': (first('images', height=0), 'height' + FIELD),
    'size of other images': (first('images', width=640, height=640), '64 x 64 pixels when'),
    'file_name empty': (first('images', file_name=''), 'file_name' + FIELD),
    'file_name with NUL': (first('images', file_name='a\0.jpg'), 'file_name' + FIELD),
    'file_name a folder': (first('images', file_name='.'), 'a folder and not a file'),
    'file_name elsewhere': (first('images', file_name='no.jpg'), 'of ann_file'),
    'category name null': (first('categories', name=None), 'name' + FIELD),
    'category name empty': (first('categories', name=' '), "of the dataset has 'green', which"),
    'no bbox': (without('annotations', 'bbox'), 'bbox' + FIELD),
    'no width': (without('images', 'width'), 'width' + FIELD),
    'images an object': (lambda coco: dict(coco, images=dict(a=1)), 'images must be a list'),
    'an image a text': (lambda coco: coco['images'].append('a.jpg'), 'images must be a list'),
    'no images': (lambda coco: dict(coco, images=[]), 'has no images'),
    'images null': (lambda coco: dict(coco, images=None), 'images must be a list'),
    'annotations null': (lambda coco: dict(coco, annotations=None), 'annotations must be a list'),
    'no categories': (lambda coco: dict(coco, categories=[]), 'metainfo.classes'),
    'top level a list': (lambda coco: [coco], "COCO's format"),
    'top level a text': (lambda coco: 'coco', "COCO's format"),
    'crowds only': (lambda coco: [ann.update(iscrowd=1) for ann in coco['annotations']] and None,
                    'leaves nothing to'),
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
def test_what_cannot_be_right_is_refused(root, name, test_mode):
    damage, words = ALWAYS_REFUSED[name]
    change_coco(root, damage)
    assert words in refusal(root, test_mode=test_mode)


def count_objects(dataset):
    return sum(len(dataset.get_data_info(i)['instances']) for i in range(len(dataset)))


@pytest.mark.parametrize('name', WARNED)
def test_an_annotation_that_cannot_be_found_gets_a_warning(root, name, warnings_logged):
    damage, words = WARNED[name]
    objects = count_objects(build(root))
    assert warnings_logged() == []
    change_coco(root, damage)
    assert count_objects(build(root)) == objects - 1
    build(root, test_mode=True)
    trained, *scored = warnings_logged()  # one sentence is not logged twice
    for message in (trained, *scored):
        assert words in message and 'id 2' in message
    assert len(scored) == (name != 'no image')


def test_what_makes_a_result_meaningless_is_refused_where_it_does(root, warnings_logged):
    sound = (root / 'train.json').read_text()
    change_coco(root, NAN_BOX)
    assert 'id 2' in refusal(root, test_mode=True)
    build(root)
    (root / 'train.json').write_text(sound)
    change_coco(root, HUGE)
    assert 'id 2' in refusal(root)
    build(root, test_mode=True)
    assert len(warnings_logged()) == 2


def test_warnings_are_one_for_each_kind(root, warnings_logged):
    def damage(coco):
        for ann in coco['annotations'][:3]:
            ann['bbox'] = [1, 1, NAN, 5]
        for ann in coco['annotations'][3:5]:
            ann['bbox'] = [900, 900, 5, 5]

    change_coco(root, damage)
    build(root)
    assert [message.split()[0] for message in warnings_logged()] == ['3', '2']


ENCODINGS = {
    'Latin-1': lambda text: text.replace('red', 'grün').encode('latin-1'),
    'UTF-16': lambda text: text.encode('utf-16'),
    'cut': lambda text: text.encode()[:len(text) // 2],
    'empty': lambda text: b'',
    'null': lambda text: b'null',
}


@pytest.mark.parametrize('name', ENCODINGS)
def test_a_file_that_is_no_json_object_is_refused(root, name):
    path = root / 'train.json'
    path.write_bytes(ENCODINGS[name](path.read_text()))
    assert str(path) in refusal(root)


def test_annotations_may_have_any_ids_and_no_iscrowd(root, warnings_logged):
    """pycocotools counts no object with id 0 as found, and takes ids for numbers."""
    def damage(coco):
        for i, annotation in enumerate(coco['annotations']):
            annotation.update(id=f'{i}-7d1e')
            del annotation['iscrowd']
        coco['annotations'][0]['id'] = 0

    before = count_objects(build(root))
    change_coco(root, damage)
    assert count_objects(build(root)) == count_objects(build(root, test_mode=True)) == before
    assert warnings_logged() == []
    change_coco(root, repeated('annotations'))
    assert count_objects(build(root)) == before + 1
    assert '2 annotations with id' in warnings_logged()[0]


def test_a_test_set_without_annotations_can_be_read(root):
    change_coco(root, lambda coco: coco.pop('annotations') and None)
    assert len(build(root, test_mode=True)) == 8
    assert 'annotations must be a list' in refusal(root)


def test_classes_listed_twice_are_refused(root):
    assert "has 'red', 'red', which" in refusal(root, classes=('red', 'green', 'blue', 'red'))


def test_an_image_listed_under_two_ids_is_announced(root, warnings_logged):
    change_coco(root, lambda coco: coco['images'].append(dict(coco['images'][0], id=99)))
    build(root)
    assert 'train_0.jpg (2 times)' in warnings_logged()[0]


def damage_image(root, content):
    (root / 'images/train_3.jpg').write_bytes(content)


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
def test_a_broken_image_is_found_before_the_first_step(root, name):
    path = root / 'images/train_3.jpg'
    IMAGES[name](path)
    for test_mode in (False, True):
        assert str(path) in refusal(root, test_mode=test_mode)


@pytest.mark.parametrize('name', ['pipe', 'another size'])
def test_a_broken_image_is_found_when_it_is_loaded(root, name):
    dataset = build(root)
    path = root / 'images/train_3.jpg'
    IMAGES[name](path)
    with pytest.raises(ConfigError, match='train_3.jpg'):
        dataset[3]


def test_all_missing_images_are_counted_at_once(root):
    for i in (2, 5, 6):
        (root / f'images/train_{i}.jpg').unlink()
    message = refusal(root)
    assert message.startswith('3 of 8 images') and f'first {root}/images/train_2.jpg' in message


def test_images_of_a_large_folder_are_found_by_listing_it(tmp_path):
    names = [str(tmp_path / f'{i}.jpg') for i in range(9)]
    for name in names[:-2]:
        open(name, 'w').close()
    assert find_missing(names) == names[-2:]
    assert find_missing([str(tmp_path / 'no' / f'{i}') for i in range(9)])


def write_rotated(root, width, height):
    """An image that is turned upright when it is read, and its size in the annotations."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / 'images/train_3.jpg', exif=exif)
    change_coco(root, lambda coco: coco['images'][3].update(width=width, height=height))


def test_an_image_that_exif_turns_must_have_turned_boxes(root):
    write_rotated(root, width=64, height=48)
    message = refusal(root)
    assert '48 x 64 pixels when it is read and 64 x 48' in message and 'EXIF' in message
    assert len(build(root, color_type='color_ignore_orientation')) == 8
    write_rotated(root, width=48, height=64)
    assert build(root)[3]['data_samples'].ori_shape == (64, 48)


def test_an_image_that_a_resize_makes_vanish_is_refused(root):
    cv2.imwrite(str(root / 'images/train_3.jpg'), np.zeros((20, 8000, 3), np.uint8))
    change_coco(root, lambda coco: coco['images'][3].update(width=8000, height=20))
    message = refusal(root)
    assert 'train_3.jpg' in message and '8000 x 20' in message and '(64, 64)' in message


def test_ids_are_all_texts_or_all_numbers(root):
    change_coco(root, lambda coco: coco['images'][2].update(id='2'))
    assert 'id' + FIELD in refusal(root)
