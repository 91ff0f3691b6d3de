"""Faults of images and annotations: each gets one sentence that names the file and the fix."""
import json

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.config import shipped_configs
from groupdetr_mmdet.errors import warn_once
from groupdetr_mmdet.data.coco import CheckedCocoDataset
from groupdetr_mmdet.data.images import CheckedLoadImageFromFile, is_cut_short

CLASSES = ('square', 'disc', 'cross')
NUM_IMAGES = 6


@pytest.fixture
def root(tmp_path):
    """A COCO data set of six images with a box each; the classes take turns."""
    init_default_scope('mmdet')
    warn_once.cache_clear()
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        noise = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f'{i}.jpg'), noise)
    write(tmp_path, dict(
        images=[dict(id=i, file_name=f'{i}.jpg', height=48, width=64) for i in range(NUM_IMAGES)],
        annotations=[dict(id=i + 1, image_id=i, category_id=10 * (i % 3 + 1), area=100,
                          iscrowd=0, bbox=[5 + i, 5, 10, 10]) for i in range(NUM_IMAGES)],
        categories=[dict(id=10 * (i + 1), name=name) for i, name in enumerate(CLASSES)]))
    return tmp_path


def write(root, annotations):
    (root / 'train.json').write_text(json.dumps(annotations))


def read(root):
    return json.loads((root / 'train.json').read_text())


def build(root, cls=CheckedCocoDataset, classes=CLASSES, ignore_empty=False, **kwargs):
    kwargs.setdefault('filter_cfg', dict(filter_empty_gt=True, min_size=32))
    return cls(
        data_root=str(root), ann_file='train.json', data_prefix=dict(img=''),
        metainfo=dict(classes=classes), **kwargs, pipeline=[
            dict(type='CheckedLoadImageFromFile', ignore_empty=ignore_empty),
            dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')])


def one_sentence(error, *parts):
    """Whether the error is one line, and says all of this."""
    message = str(error.value)
    return '\n' not in message and all(str(part) in message for part in parts)


FAULTS = {
    'missing': (lambda path: path.unlink(), 'No such file'),
    'empty': (lambda path: path.write_bytes(b''), 'the file is empty'),
    'web page': (lambda path: path.write_text('<html>404 Not Found</html>'), 'not an image'),
    'cut in half': (lambda path: path.write_bytes(half(path)), 'cut short'),
    'directory': (lambda path: (path.unlink(), path.mkdir()), 'a folder'),
}


def half(path):
    data = path.read_bytes()
    return data[:len(data) // 2]


@pytest.mark.parametrize('name', FAULTS)
def test_an_unreadable_image_is_named(root, name):
    damage, reason = FAULTS[name]
    dataset = build(root)
    damage(root / '2.jpg')
    assert dataset[1]['inputs'].shape == (3, 48, 64)
    with pytest.raises(ConfigError) as error:
        dataset[2]
    assert one_sentence(error, root / '2.jpg', reason, 'data_prefix.img', 'ignore_empty=True',
                        'CheckedLoadImageFromFile')
    with pytest.raises(ConfigError) as error:  # and before the first step
        build(root)
    assert one_sentence(error, root / '2.jpg', reason.replace('No such file', 'missing'),
                        'data_prefix.img')


@pytest.mark.parametrize('name', FAULTS)
def test_ignore_empty_takes_another_image_and_warns_once(root, name, warnings_logged):
    FAULTS[name][0](root / '2.jpg')
    dataset = build(root, ignore_empty=True)
    taken = {dataset[2]['data_samples'].img_id for _ in range(20)}
    assert taken and 2 not in taken
    assert all(str(root / '2.jpg') in warning for warning in warnings_logged())
    assert len(warnings_logged()) == (2 if name == 'missing' else 1)


def test_the_sentence_is_the_last_line_from_a_worker(root):
    dataset = build(root)
    (root / '2.jpg').write_bytes(b'')
    loader = DataLoader(dataset, num_workers=1, collate_fn=list)
    with pytest.raises(ConfigError) as error:
        list(loader)
    last = str(error.value).strip().splitlines()[-1]
    assert str(root / '2.jpg') in last and 'the file is empty' in last and 'ignore_empty' in last


def with_thumbnail(data):
    """A JPEG whose header holds a whole JPEG, as cameras write it."""
    thumbnail = cv2.imencode('.jpg', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    size = (len(thumbnail) + 2).to_bytes(2, 'big')
    return data[:2] + b'\xff\xe1' + size + thumbnail + data[2:]


@pytest.mark.parametrize('progressive', [0, 1])
@pytest.mark.parametrize('make', [bytes, with_thumbnail])
def test_a_jpeg_without_end_is_found_without_the_decoder(tmp_path, progressive, make):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    data = make(cv2.imencode('.jpg', noise, options)[1].tobytes())
    path = tmp_path / 'image.jpg'

    def cut_short(content):
        path.write_bytes(content)
        return is_cut_short(str(path))

    assert not cut_short(data)
    assert not cut_short(data + b'\xff\xd8 appended by a camera')
    assert all(cut_short(data[:-n]) for n in (2, 100, len(data) // 2))
    png = cv2.imencode('.png', noise)[1].tobytes()
    assert not cut_short(png) and not cut_short(png + b'appended')
    assert cut_short(png[:-9]) and cut_short(png[:len(png) // 2])
    assert not cut_short(b'GIF89a, or any other kind')


def test_an_image_that_the_decoder_lets_pass_is_refused_all_the_same(root, monkeypatch):
    """OpenCV 4 returns a whole array for half a file."""
    (root / '2.jpg').write_bytes(half(root / '2.jpg'))
    monkeypatch.setattr(cv2, 'imdecode', lambda *args: np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(ConfigError, match='cut short'):
        CheckedLoadImageFromFile().transform(dict(img_path=str(root / '2.jpg')))


def test_sound_data_is_what_the_parent_makes_of_it(root, warnings_logged):
    ours, stock = build(root), build(root, CocoDataset)
    assert len(ours) == len(stock) == NUM_IMAGES
    for a, b in zip(ours, stock):
        assert (a['inputs'] == b['inputs']).all()
        assert a['data_samples'].img_path == b['data_samples'].img_path
        assert (a['data_samples'].gt_instances.labels ==
                b['data_samples'].gt_instances.labels).all()
    assert warnings_logged() == []


@pytest.mark.parametrize('test_mode', [False, True])
def test_a_class_that_the_file_lacks_is_refused(root, test_mode):
    """The parent gives its boxes the labels of other classes, without a word."""
    classes = ('sqare', 'disc', 'cross')
    disc = build(root, CocoDataset, classes=classes).get_data_info(0)
    assert disc['img_id'] == 1 and classes[disc['instances'][0]['bbox_label']] == 'sqare'
    with pytest.raises(ConfigError) as error:
        build(root, classes=classes, test_mode=test_mode)
    assert one_sentence(error, root / 'train.json', "'sqare'", "'square', 'disc', 'cross'",
                        'metainfo')


def test_two_categories_of_one_name_are_refused(root):
    data = read(root)
    data['categories'].append(dict(id=99, name='disc'))
    write(root, data)
    with pytest.raises(ConfigError, match="'disc'"):
        build(root)


def test_labels_follow_names_whatever_the_order(root, warnings_logged):
    ours, reversed_ = build(root), build(root, classes=CLASSES[::-1])
    for a, b in zip(ours, reversed_):
        labels = [x['data_samples'].gt_instances.labels[0] for x in (a, b)]
        assert CLASSES[labels[0]] == CLASSES[::-1][labels[1]]
    assert warnings_logged() == []


def test_boxes_that_are_left_out_are_counted(root, warnings_logged):
    data = read(root)
    data['annotations'][0]['category_id'] = 7
    write(root, data)
    dataset = build(root, classes=('square', 'cross'))
    assert len(dataset) == 3
    assert len(warnings_logged()) == 1
    message = warnings_logged()[0]
    assert '3 of 6 boxes' in message and "'disc (2)'" in message and 'id 7 (1)' in message


NOTHING_LEFT = {
    'unknown category ids': lambda data: [a.update(category_id=1) for a in data['annotations']],
    'boxes outside of the image':
    lambda data: [a.update(bbox=[500, 500, 9, 9]) for a in data['annotations']],
    'crowds': lambda data: [a.update(iscrowd=1) for a in data['annotations']],
}


@pytest.mark.parametrize('filter_cfg', [None, dict(filter_empty_gt=True, min_size=32)])
@pytest.mark.parametrize('name', NOTHING_LEFT)
def test_a_training_set_without_a_usable_box_is_refused(root, name, filter_cfg):
    data = read(root)
    NOTHING_LEFT[name](data)
    write(root, data)
    with pytest.raises(ConfigError) as error:
        build(root, filter_cfg=filter_cfg)
    assert one_sentence(error, root / 'train.json', 'of its 6 images 0 have a usable box',
                        'filter_cfg', 'metainfo.classes')
    with pytest.raises(ConfigError) as error:
        build(root, filter_cfg=filter_cfg, test_mode=True)
    assert one_sentence(error, root / 'train.json')


def test_a_filter_that_leaves_nothing_is_refused(root):
    with pytest.raises(ConfigError) as error:
        build(root, filter_cfg=dict(filter_empty_gt=True, min_size=320))
    assert one_sentence(error, '6 have a usable box', '0 are left', "'min_size': 320")


def test_images_without_boxes_are_background(root):
    data = read(root)
    write(root, dict(data, annotations=[]))
    assert len(build(root, filter_cfg=None)) == NUM_IMAGES
    with pytest.raises(ConfigError, match='nothing to train on'):
        build(root)


CONFIGS = {file.stem: file for file in shipped_configs().values()
           if file.stem.startswith('group_') and 'mask2former_r50' not in file.stem}


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_the_configs_check_what_they_train_on(config):
    cfg = Config.fromfile(config)
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert train.type == val.type == 'CheckedCocoDataset'
    assert train.pipeline[0].type == 'CheckedLoadImageFromFile'
    assert val.pipeline[0].type == 'LoadImageFromFile'  # mmdet's inferencer looks for this name
