"""What becomes of images that cannot be read, and of classes that the annotations lack."""
import re

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from tiny import CLASSES, change_coco, checked_dataset
from torch.utils.data import DataLoader

from groupdetr_mmdet.config import shipped_configs
from groupdetr_mmdet.data.images import CheckedLoadImageFromFile, check_whole
from groupdetr_mmdet.errors import ConfigError


@pytest.mark.parametrize('damage', [
    lambda path: path.unlink(), lambda path: path.write_bytes(b''),
    lambda path: (path.unlink(), path.mkdir())], ids=['missing', 'empty', 'folder'])
def test_ignore_empty_takes_another_image_and_warns_once(tiny_coco, damage, warnings_logged):
    path = tiny_coco / 'images/train_2.jpg'
    damage(path)
    dataset = checked_dataset(tiny_coco, ignore_empty=True)
    taken = {dataset[2]['data_samples'].img_id for _ in range(20)}
    assert taken and 2 not in taken
    assert all(str(path) in warning for warning in warnings_logged())
    assert len(warnings_logged()) == 1 + (not path.exists())


def test_the_sentence_is_the_last_line_from_a_worker(tiny_coco):
    dataset = checked_dataset(tiny_coco)
    (tiny_coco / 'images/train_2.jpg').write_bytes(b'')
    with pytest.raises(ConfigError) as error:
        list(DataLoader(dataset, num_workers=1, collate_fn=list))
    last = str(error.value).strip().splitlines()[-1]
    assert all(x in last for x in ('train_2.jpg', 'the file is empty', 'ignore_empty=True'))


def with_thumbnail(data):
    """A JPEG whose header holds a whole JPEG, as cameras write it."""
    thumbnail = cv2.imencode('.jpg', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    size = (len(thumbnail) + 2).to_bytes(2, 'big')
    return data[:2] + b'\xff\xe1' + size + thumbnail + data[2:]


@pytest.mark.parametrize('make', [bytes, with_thumbnail])
@pytest.mark.parametrize(('suffix', 'options'), [
    ('.jpg', [cv2.IMWRITE_JPEG_PROGRESSIVE, 0]), ('.jpg', [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
    ('.png', [])])
def test_half_an_image_is_told_from_a_whole_one(tmp_path, suffix, options, make, monkeypatch):
    """OpenCV 4 may return a whole array for half a file."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = cv2.imencode(suffix, noise, options)[1].tobytes()
    data = make(data) if suffix == '.jpg' else data
    path = tmp_path / f'image{suffix}'
    for whole in (data, data + b'\xff\xd8 appended by a camera', b'GIF89a, or any other kind'):
        path.write_bytes(whole)
        check_whole(str(path))
    monkeypatch.setattr(cv2, 'imdecode', lambda *args: noise)
    for missing in (100, len(data) // 2):
        path.write_bytes(data[:-missing])
        with pytest.raises(ConfigError, match='cut short'):
            CheckedLoadImageFromFile().transform(dict(img_path=str(path)))


def test_sound_data_is_what_the_parent_makes_of_it(tiny_coco, warnings_logged):
    ours, stock = checked_dataset(tiny_coco), checked_dataset(tiny_coco, cls=CocoDataset)
    assert len(ours) == len(stock) == 8
    for a, b in zip(ours, stock):
        assert (a['inputs'] == b['inputs']).all()
        assert a['data_samples'].img_path == b['data_samples'].img_path
        assert (a['data_samples'].gt_instances.labels ==
                b['data_samples'].gt_instances.labels).all()
    assert warnings_logged() == []


@pytest.mark.parametrize('test_mode', [False, True])
def test_a_class_must_be_one_category(tiny_coco, test_mode):
    """The parent gives boxes of a class that is misspelt no label, without a word."""
    with pytest.raises(ConfigError, match="'gren'.*train.json.*'red', 'green', 'blue'"):
        checked_dataset(tiny_coco, classes=('red', 'gren', 'blue'), test_mode=test_mode)
    with pytest.raises(ConfigError, match=r"has \['red', 'red'\], which"):
        checked_dataset(tiny_coco, classes=(*CLASSES, 'red'), test_mode=test_mode)
    change_coco(tiny_coco, lambda coco: coco['categories'].append(dict(id=99, name='green')))
    with pytest.raises(ConfigError, match="'green'"):
        checked_dataset(tiny_coco, test_mode=test_mode)


def test_boxes_that_are_left_out_are_counted(tiny_coco, warnings_logged):
    change_coco(tiny_coco, lambda coco: [
        x.update(category_id=7 if i == 0 else i % 2 + 1)
        for i, x in enumerate(coco['annotations'])] and None)
    checked_dataset(tiny_coco, classes=('green', 'blue'))
    message, = warnings_logged()
    left_out, count = map(int, re.search(r'(\d+) of (\d+) boxes', message).groups())
    assert left_out == (count + 1) // 2
    assert f"'red ({left_out - 1})'" in message and 'id 7 (1)' in message


def test_a_filter_must_leave_images_and_may_leave_background(tiny_coco):
    with pytest.raises(ConfigError, match="8 of 8 .*'min_size': 320} leaves 0 images"):
        checked_dataset(tiny_coco, filter_cfg=dict(filter_empty_gt=True, min_size=320))
    change_coco(tiny_coco, lambda coco: coco.update(annotations=[]))
    assert len(checked_dataset(tiny_coco)) == 8
    with pytest.raises(ConfigError, match='nothing to train on'):
        checked_dataset(tiny_coco, filter_cfg=dict(filter_empty_gt=True))


CONFIGS = {file.stem: file for file in shipped_configs().values()
           if file.stem.startswith('group_') and 'mask2former_r50' not in file.stem}


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_the_configs_check_what_they_train_on(config):
    cfg = Config.fromfile(config)
    train, val = cfg.train_dataloader.dataset, cfg.val_dataloader.dataset
    assert train.type == val.type == 'CheckedCocoDataset'
    assert train.pipeline[0].type == 'CheckedLoadImageFromFile'
    assert val.pipeline[0].type == 'LoadImageFromFile'  # mmdet's inferencer looks for this name
