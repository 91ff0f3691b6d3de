"""Every layout gives the same data set, and a fault in it gives one sentence."""
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from layout_builders import LAYOUTS, write_layout
from PIL import Image
from tiny import CLASSES

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.host.layouts import read_dataset
from groupdetr_mmdet.host.recipe import complete_splits

OF_ONE_SPLIT = ('coco', 'labelimg')


def described(dataset, split):
    """Images by their names: size, and each object's class and box."""
    return {image.path.name: (image.width, image.height,
                              [(x.name, *np.round(x.xyxy, 3)) for x in image.boxes])
            for image in dataset.splits[split]}


def expected(coco: Path, split: str) -> dict:
    content = json.loads((coco / f'{split}.json').read_text())
    images = {}
    for image in content['images']:
        boxes = [(CLASSES[ann['category_id'] - 1], *ann['bbox']) for ann in content['annotations']
                 if ann['image_id'] == image['id']]
        images[image['file_name']] = (image['width'], image['height'],
                                      [(c, x, y, x + w, y + h) for c, x, y, w, h in boxes])
    return images


@pytest.mark.parametrize('kind', LAYOUTS)
def test_all_layouts_are_the_same_data_set(tiny_coco, tmp_path, kind):
    dataset = read_dataset(write_layout(kind, tiny_coco, tmp_path / 'data' / kind))
    assert sorted(dataset.classes) == sorted(CLASSES)
    train, val = (expected(tiny_coco, split) for split in ('train', 'val'))
    if kind in OF_ONE_SPLIT:
        assert described(dataset, 'train') == {**train, **val}
    else:
        assert described(dataset, 'train') == train
        assert described(dataset, 'val') == val


def test_a_split_is_drawn_where_there_is_none(tiny_coco, tmp_path):
    root = write_layout('labelimg', tiny_coco, tmp_path / 'labelimg')
    drawn = []
    for seed in (0, 0, 1):
        dataset = read_dataset(root)
        complete_splits(dataset, 0.25, seed)
        train, val = ({image.path for image in dataset.splits[x]} for x in ('train', 'val'))
        assert len(val) == 3 and len(train) == 9 and not train & val
        drawn.append(val)
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_test_split_serves_as_validation(tiny_coco, tmp_path):
    root = write_layout('roboflow', tiny_coco, tmp_path / 'data')
    (root / 'valid').rename(root / 'test')
    dataset = read_dataset(root)
    complete_splits(dataset, 0.2, 0)
    assert described(dataset, 'val') == expected(tiny_coco, 'val') and 'test' not in dataset.splits


def first(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def set_line(root: Path, line: str) -> None:
    first(root, '*.txt').write_text(line)


def edit_json(root: Path, change) -> None:
    file = first(root, '*.json')
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


FAULTS = {
    'class beyond names': ('yolo', lambda r: set_line(r, '3 .5 .5 .1 .1'),
                           'train_0.txt line 1 has the class 3, and the classes are numbered'),
    'a class between two': ('yolo', lambda r: set_line(r, '0.5 .5 .5 .1 .1'), 'has the class 0.5'),
    'pixels in YOLO': ('yolo', lambda r: set_line(r, '0 32 32 10 10'), 'numbers beyond 0 to 1'),
    'NaN in YOLO': ('yolo', lambda r: set_line(r, '0 nan .5 .1 .1'), 'numbers beyond 0 to 1'),
    'negative width': ('yolo', lambda r: set_line(r, '0 .5 .5 -.1 .1'), 'numbers beyond 0 to 1'),
    'a word': ('yolo', lambda r: set_line(r, '0 .5 .5 .1 wide'), "'wide' in the place"),
    'four numbers': ('yolo', lambda r: set_line(r, '0 .5 .5 .1'), 'has 4 numbers'),
    'names with a gap': ('yolo', lambda r: (r / 'data.yaml').write_text(
        'names: {0: a, 2: b}\ntrain: train/images'), 'numbered from 0 without a gap'),
    'a name twice': ('yolo', lambda r: (r / 'data.yaml').write_text(
        'names: [a, a, b]\ntrain: train/images'), 'two classes of the name a'),
    'no training images': ('yolo', lambda r: replace(r / 'data.yaml', '/train/', '/trian/'),
                           'train names ../trian/images, which does not exist'),
    'broken YAML': ('yolo', lambda r: (r / 'data.yaml').write_text('names: [a\ntrain: b'),
                    'data.yaml is not valid YAML'),
    'cut JSON': ('coco', lambda r: first(r, '*.json').write_text('{"images": ['),
                 'all.json is not valid JSON'),
    'no list': ('coco', lambda r: edit_json(r, lambda x: x.update(images={})), "no list 'images'"),
    'NaN in COCO': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'][0]['bbox'].__setitem__(0, float('nan'))),
        'all.json annotation 1 has the box nan'),
    'negative size': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'][0]['bbox'].__setitem__(2, -9)), 'swapped corners'),
    'three numbers': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'][0]['bbox'].pop()), 'annotation 1 has bbox='),
    'unknown category': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'][0].update(category_id=9)), 'of the category 9'),
    'unknown image': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'][0].update(image_id=99)), 'of the image 99'),
    'same image id': ('coco', lambda r: edit_json(
        r, lambda x: x['images'][0].update(id=x['images'][1]['id'])), 'images of the same id'),
    'another size': ('coco', lambda r: edit_json(
        r, lambda x: x['images'][0].update(width=65)), 'is 65 x 64 pixels, and it is 64 x 64'),
    'swapped corners': ('voc', lambda r: replace(
        first(r, '*.xml'), '<xmax>', '<xmax>-'), 'has a box with swapped corners'),
    'NaN in XML': ('labelimg', lambda r: replace(first(r, '*.xml'), '<xmin>', '<xmin>nan</xmin>'
                                                 '<xmin>'), 'which is not finite'),
    'cut XML': ('labelimg', lambda r: first(r, '*.xml').write_text('<annotation><object>'),
                'train_0.xml is not valid XML'),
    'no box': ('labelimg', lambda r: first(r, '*.xml').write_text(
        '<annotation><object><name>a</name></object></annotation>'), 'a without bndbox'),
    'XML that is listed': ('voc', lambda r: first(r, '*.xml').unlink(),
                           'train_0.xml does not exist, and .*train.txt names it'),
    'no labels': ('labelimg', lambda r: [x.unlink() for x in r.glob('*.xml')], 'has no labels'),
    'no objects': ('yolo', lambda r: [x.write_text('') for x in r.rglob('*.txt')],
                   'no image with an object'),
    'two kinds': ('yolo', lambda r: (r / 'a.xml').write_text('<annotation></annotation>'),
                  'labels of several kinds'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_faults_name_the_file(tiny_coco, tmp_path, name):
    kind, damage, message = FAULTS[name]
    root = write_layout(kind, tiny_coco, tmp_path / 'data' / kind)
    damage(root)
    with pytest.raises(ConfigError, match=message) as error:
        read_dataset(root)
    assert str(tmp_path) in str(error.value) and '\n' not in str(error.value)


def test_many_faults_are_counted(tiny_coco, tmp_path):
    root = write_layout('yolo', tiny_coco, tmp_path / 'yolo')
    for label in (root / 'train').rglob('*.txt'):
        label.write_text('7 .5 .5 .1 .1')
    with pytest.raises(ConfigError, match='^8 of 8 images have faults .* class 7'):
        read_dataset(root)


def test_the_suffix_is_that_of_the_real_file(tiny_coco, tmp_path):
    for kind in ('coco', 'voc'):
        root = write_layout(kind, tiny_coco, tmp_path / 'data' / kind)
        for image in root.rglob('*.jpg'):
            cv2.imwrite(str(image.with_suffix('.png')), cv2.imread(str(image)))
            image.unlink()
        images = read_dataset(root).splits['train']
        assert {image.path.suffix for image in images} == {'.png'} and len(images) >= 8


@pytest.mark.parametrize(('kind', 'damage', 'note'), [
    ('yolo', lambda r: (r / 'train/labels/more.txt').write_text(''),
     'label files without image, left out: 1, first .*more.txt'),
    ('voc', lambda r: first(r, '*.jpg').unlink(), 'label files without image, left out: 1'),
    ('coco', lambda r: first(r, '*.jpg').unlink(), 'images that are not there, left out: 1'),
    ('labelimg', lambda r: first(r, '*.jpg').write_bytes(b'no image'),
     'unreadable images, left out: 1'),
    ('labelimg', lambda r: first(r, '*.jpg').write_bytes(first(r, '*.jpg').read_bytes()[:-9]),
     'unreadable images, left out: 1'),
    ('labelimg', lambda r: first(r, '*.xml').unlink(), 'images without XML, left out: 1'),
    ('yolo', lambda r: set_line(r, '0 .99 .5 .1 .1'),
     'boxes over the edge of their image, clipped: 1, first .* line 1'),
    ('yolo', lambda r: set_line(r, '0 .5 .5 0 .1'), 'boxes without area .*: 1'),
])
def test_what_is_left_out_is_noted(tiny_coco, tmp_path, kind, damage, note):
    root = write_layout(kind, tiny_coco, tmp_path / 'data' / kind)
    damage(root)
    dataset = read_dataset(root)
    text = '\n'.join(dataset.notes)
    assert re.search(note, text), text


def test_polygons_become_their_boxes(tiny_coco, tmp_path):
    root = write_layout('yolo', tiny_coco, tmp_path / 'yolo')
    set_line(root, '1 .25 .5 .5 .25 .75 .5')
    box, = read_dataset(root).splits['train'][0].boxes
    assert box.name == CLASSES[1] and box.xyxy == (16, 16, 48, 32)


def test_an_image_without_yolo_labels_is_background(tiny_coco, tmp_path):
    root = write_layout('yolo', tiny_coco, tmp_path / 'yolo')
    first(root, '*.txt').unlink()
    images = read_dataset(root).splits['train']
    assert len(images) == 8 and not images[0].boxes


def test_a_size_is_that_of_the_image_as_it_is_loaded(tiny_coco, tmp_path):
    """EXIF data turn it, and OpenCV turns it as they say."""
    root = write_layout('yolo', tiny_coco, tmp_path / 'yolo')
    path = first(root, '*.jpg')
    image, exif = Image.new('RGB', (40, 20)), Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    read = read_dataset(root).splits['train'][0]
    assert (read.height, read.width) == cv2.imread(str(path)).shape[:2] == (40, 20)


def test_a_file_chooses_between_two_kinds(tiny_coco, tmp_path):
    root = write_layout('yolo', tiny_coco, tmp_path / 'yolo')
    (root / 'a.xml').write_text('<annotation></annotation>')
    assert described(read_dataset(root / 'data.yaml'), 'train') == expected(tiny_coco, 'train')


def test_images_of_the_same_name_are_those_of_their_split(tiny_coco, tmp_path):
    """And of the folder that the file names."""
    root = write_layout('roboflow', tiny_coco, tmp_path / 'data')
    for folder, color in (('train', 10), ('valid', 200)):
        file = root / folder / '_annotations.coco.json'
        content = json.loads(file.read_text())
        old = root / folder / content['images'][0]['file_name']
        old.unlink()
        content['images'][0]['file_name'] = 'same.jpg'
        (root / folder / 'images').mkdir()
        cv2.imwrite(str(root / folder / 'images/same.jpg'), np.full((64, 64, 3), color, np.uint8))
        file.write_text(json.dumps(content))
    splits = read_dataset(root).splits
    for split, folder in (('train', 'train'), ('val', 'valid')):
        assert splits[split][0].path == root / folder / 'images/same.jpg'
