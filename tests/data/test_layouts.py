"""Every layout gives the same data set, and a fault in it gives one sentence."""
import os
import re
import shutil
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import yaml
from layout_builders import (LAYOUTS, OBJECT, check_same, described, edit_json, edit_lines,
                             expected, first, replace, set_line, write_layout)
from PIL import Image
from tiny import CLASSES

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.data.layouts import has_objects, read_dataset
from groupdetr_mmdet.data.layouts.yolo import has_key_points
from groupdetr_mmdet.training.recipe import complete_splits

def set_yaml(root: Path, **changes) -> None:
    """Change entries of ``data.yaml``; None takes one out."""
    content = {**yaml.safe_load((root / 'data.yaml').read_text()), **changes}
    (root / 'data.yaml').write_text(
        yaml.safe_dump({key: x for key, x in content.items() if x is not None}))


def name_images(root: Path, pattern: str, **changes) -> None:
    changes.update(train=pattern.format('train'), val=pattern.format('valid'), test=None)
    set_yaml(root, **changes)


def list_images(root: Path, line: str) -> None:
    for folder in ('train', 'valid'):
        (root / f'{folder}.txt').write_text('\n'.join(
            line.format(folder, x.name) for x in (root / folder / 'images').iterdir()))
    name_images(root, '{}.txt')


def name_classes_in(root: Path, *names: str) -> None:
    (root / 'data.yaml').unlink()
    for name in names:
        (root / name).write_text('\n'.join(CLASSES) + '\n')


def rename(root: Path, pattern: str, new) -> None:
    for path in sorted(root.glob(pattern)):
        path.rename(path.with_name(new(path)))


def move_into(root: Path, folder: str) -> None:
    moved = root.parent / 'moved'
    root.rename(moved)
    (root / folder).parent.mkdir(parents=True)
    moved.rename(root / folder)


def move_annotations(root: Path) -> None:
    (root / 'Annotations/more').mkdir()
    for file in root.glob('Annotations/*.xml'):
        file.rename(file.parent / 'more' / file.name)
    edit_lines(root, 'Main/*', lambda x: f'more/{x}')


def add_masks(root: Path) -> None:
    (root / 'annotations/masks').mkdir()
    for image in root.glob('photos/*'):
        cv2.imwrite(str(root / 'annotations/masks' / image.name), np.zeros((9, 9), np.uint8))


def move_and_link(root: Path) -> None:
    """Have links to folders that lie elsewhere, and one round in a circle."""
    elsewhere = root.parent / 'elsewhere'
    root.rename(elsewhere)
    root.mkdir()
    for member in elsewhere.iterdir():
        (root / member.name).symlink_to(member)
    (elsewhere / 'train/images/round').symlink_to(elsewhere / 'train/images')


def add_hidden_files(root: Path) -> None:
    """What a Mac puts into an archive, and Jupyter beside a file."""
    for file in [x for x in root.rglob('*') if x.is_file()]:
        checkpoint = file.parent / '.ipynb_checkpoints' / f'{file.stem}-checkpoint{file.suffix}'
        checkpoint.parent.mkdir(exist_ok=True)
        shutil.copy(file, checkpoint)
        (file.parent / f'._{file.name}').write_bytes(b'\0\5\x16\7\xff')
    shutil.copytree(root, root / '__MACOSX')


def join(root: Path) -> None:
    """Have images and labels in one folder for each split, named as on another machine."""
    for file in root.glob('*/*/*'):
        file.rename(file.parents[1] / file.name)
    if (root / 'data.yaml').is_file():
        name_images(root, '/kaggle/input/photos/{}')


def edit_all(root: Path, pattern: str, edit) -> None:
    for file in root.rglob(pattern):
        file.write_bytes(edit(file.read_bytes()))


def move_half(root: Path) -> None:
    """Have two years of Pascal VOC side by side, of which each has some of the images."""
    move_into(root, 'VOC2007')
    shutil.copytree(root / 'VOC2007', root / 'VOC2012')
    for year, rest in (('VOC2007', slice(0, None, 2)), ('VOC2012', slice(1, None, 2))):
        for split in ('train', 'val'):
            file = root / year / f'ImageSets/Main/{split}.txt'
            file.write_text('\n'.join(file.read_text().split()[rest]))


# What folders look like that are the same data set.
SAME = {
    'names by number': ('yolo', lambda r: set_yaml(r, names=dict(enumerate(CLASSES)))),
    'absolute path': ('yolo', lambda r: name_images(r, '{}/images', path=str(r))),
    'path elsewhere': ('yolo', lambda r: name_images(r, '{}/images', path='/content/photos')),
    'folders elsewhere': ('yolo', lambda r: name_images(r, '/content/photos/{}/images')),
    'folders of Windows': ('yolo', lambda r: name_images(r, 'C:\\photos\\{}\\images')),
    'lists of images': ('yolo', lambda r: list_images(r, './{}/images/{}')),
    'lists of images elsewhere': ('yolo', lambda r: list_images(r, '/content/{}/images/{}')),
    'YAML of names': ('yolo', lambda r: set_yaml(r, train=None, val=None, test=None)),
    'classes.txt': ('yolo', lambda r: name_classes_in(r, 'classes.txt')),
    'classes.txt twice': ('yolo', lambda r: name_classes_in(
        r, 'train/labels/classes.txt', 'valid/labels/classes.txt')),
    'obj.names': ('yolo', lambda r: name_classes_in(r, 'obj.names')),
    'classes in capitals': ('yolo', lambda r: name_classes_in(r, 'CLASSES.TXT')),
    'Darknet of Roboflow': ('yolo', lambda r: name_classes_in(
        r, 'train/_darknet.labels', 'valid/_darknet.labels') or join(r)),
    'a model beside': ('yolo', lambda r: (r / 'yolov8n.yaml').write_text('nc: 80\n')),
    'lists without a suffix': ('yolo', lambda r: list_images(r, './{}/images/{}') or rename(
        r, '*.txt', lambda x: f'{x.stem}.list') or name_images(r, '{}.list')),
    'notes of Label Studio': ('yolo', lambda r: (r / 'notes.json').write_text(
        '{"categories": []}')),
    'capital folders': ('yolo', lambda r: rename(r, '*/*', lambda x: x.name.title()) or
                        name_images(r, '{}/Images')),
    'LABELS beside IMAGES': ('yolo', lambda r: rename(r, '*/*', lambda x: x.name.upper()) or
                             name_images(r, '{}/IMAGES')),
    'one folder for a split, elsewhere': ('yolo', join),
    'a list elsewhere': ('yolo', lambda r: list_images(r, './{}/images/{}') or
                         name_images(r, '/content/photos/{}.txt')),
    'labels of Windows': ('yolo', lambda r: edit_all(
        r, '*.txt', lambda x: b'\xef\xbb\xbf' + x.replace(b'\n', b' \r\n') + b'\r\n \r\n')),
    'labels twice': ('yolo', lambda r: edit_lines(r, 'labels/*.txt', lambda x: f'{x}\n{x}')),
    'other YAML': ('yolo', lambda r: (r / 'chart.yaml').write_text('{{- if .x }}\na: b') and
                   (r / 'two.yml').write_text('a: b\n---\nc: d')),
    'labels in capitals': ('yolo', lambda r: rename(
        r, '*/labels/*', lambda x: f'{x.stem}.TXT')),
    'links to nothing': ('yolo', lambda r: [
        (r / f'gone.{x}').symlink_to('nowhere') for x in ('json', 'xml', 'yaml', 'txt', 'jpg')]),
    'labels beside images': ('yolo', lambda r: [
        x.rename(x.parents[1] / 'images' / x.name) for x in r.glob('*/labels/*')]),
    'key points': ('yolo', lambda r: set_yaml(r, kpt_shape=[2, 2]) or edit_lines(
        r, 'labels/*.txt', lambda x: f'{x} .1 .1 .9 .9')),
    "labels beside Pascal VOC's images": ('yolo', lambda r: rename(
        r, '*/images', lambda x: 'JPEGImages') or name_images(r, '{}/JPEGImages')),
    'deeper': ('yolo', lambda r: move_into(r, 'mine/photos.v1')),
    'links': ('yolo', move_and_link),
    'hidden files': ('yolo', add_hidden_files),
    'a folder for evaluation': ('roboflow', lambda r: (r / 'valid').rename(r / 'eval')),
    'COCO elsewhere': ('coco', lambda r: edit_json(r, lambda x: [
        y.update(file_name=f'D:\\data\\{y["file_name"]}') for y in x['images']])),
    'COCO without sizes and areas': ('coco', lambda r: edit_json(r, lambda x: [
        y.pop(key, None) for y in x['images'] + x['annotations']
        for key in ('width', 'height', 'area', 'iscrowd')])),
    'COCO of texts': ('coco', lambda r: edit_json(r, lambda x: [
        y.update({key: str(y[key]) if key != 'bbox' else list(map(str, y[key])) for key in y if key
                  in ('id', 'image_id', 'category_id', 'width', 'height', 'iscrowd', 'bbox')})
        for part in x.values() for y in part])),
    'COCO of capitals': ('coco', lambda r: edit_json(r, lambda x: [
        y.update(file_name=f'PHOTOS\\{y["file_name"].upper()}') for y in x['images']])),
    'COCO for testing without annotations': ('roboflow', lambda r: (r / 'test.json').write_text(
        '{"images": [{"id": 1, "file_name": "val_0.jpg"}], "categories": []}')),
    'a group of the name of its class': ('roboflow', lambda r: [
        replace(x, '"things", "supercategory": "none"', '"red", "supercategory": "none"') or
        edit_all(x.parent, x.name, lambda y: y.replace(b'"things"', b'"red"'))
        for x in r.rglob('*.json')]),
    'COCO in capitals': ('coco', lambda r: rename(r, 'annotations/*', lambda x: 'all.JSON')),
    'COCO beside masks': ('coco', add_masks),
    'COCO with results': ('coco', lambda r: (r / 'results.json').write_text('[{"images": []}]')),
    'COCO with captions': ('coco', lambda r: rename(
        r, 'annotations/*', lambda x: 'instances.json') or (r / 'captions.json').write_text(
            '{"images": [], "annotations": []}')),
    'flags behind names': ('voc', lambda r: edit_lines(r, 'Main/*', lambda x: f'{x}  -1')),
    'suffixes in lists': ('voc', lambda r: edit_lines(r, 'Main/*', lambda x: f'{x}.jpg')),
    'another encoding': ('voc', lambda r: [x.write_bytes(
        '<?xml version="1.0" encoding="latin-1"?><!-- \xfc -->'.encode('latin-1') +
        x.read_bytes()) for x in r.rglob('*.xml')]),
    'other XML': ('voc', lambda r: (r / 'labels.xml').write_text('<annotations/>')),
    'lists called otherwise': ('voc', lambda r: rename(
        r, 'ImageSets/Main/*', lambda x: dict(train='Train.txt', val='valid.txt')[x.stem])),
    'listed XML in capitals': ('voc', lambda r: rename(
        r, 'Annotations/*', lambda x: f'{x.stem}.XML')),
    'XML in folders': ('voc', move_annotations),
    'lists without Main': ('voc', lambda r: [
        x.rename(r / 'ImageSets' / x.name) for x in r.glob('ImageSets/Main/*')]),
    'XML in capitals': ('labelimg', lambda r: rename(r, '*.xml', lambda x: f'{x.stem}.XML')),
    'XML in UTF-16': ('labelimg', lambda r: edit_all(
        r, '*.xml', lambda x: x.decode().encode('utf-16'))),
    'parts of objects': ('voc', lambda r: edit_lines(r, '*.xml', lambda x: x.replace(
        '<object>', f'<object><part>{OBJECT.format("head", 1, 1, 9, 9)[8:-9]}</part>'))),
    'two years': ('voc', lambda r: move_half(r)),
    'renamed images': ('labelimg', lambda r: edit_lines(r, '*.xml', lambda x: x.replace(
        '<filename>', '<folder>gone</folder><path>C:\\gone.png</path><filename>gone'))),
    'renamed XML': ('labelimg', lambda r: rename(r, '*.xml', lambda x: f'label {x.name}')),
    'one folder named for a split': ('labelimg', lambda r: move_into(r, 'val')),
}


@pytest.mark.parametrize('name', [*LAYOUTS, *SAME])
def test_all_layouts_are_the_same_data_set(tiny_coco, tmp_path, name):
    kind, change = SAME.get(name, (name, lambda root: None))
    root = write_layout(kind, tiny_coco, tmp_path / 'data' / kind)
    change(root)
    check_same(read_dataset(root), tiny_coco, kind)


def test_a_list_of_classes_among_the_labels_is_none_of_them(tiny_coco, tmp_path):
    root = write_layout('yolo', tiny_coco, tmp_path / 'data')
    (root / 'train/labels/classes.txt').write_text('\n'.join(CLASSES))
    assert not re.search('label files', '\n'.join(read_dataset(root).notes))


def test_a_polygon_through_a_corner_has_no_key_points():
    assert not has_key_points([.4, 0, .4, .5, 0, .5, 0, 0, .4, 0])
    assert has_key_points([.4, .4, .4, .4, .5, .5, 2, 0, 0, 0])


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


def test_a_drawn_split_has_objects_on_both_sides(tiny_coco, tmp_path):
    root = write_layout('labelimg', tiny_coco, tmp_path / 'labelimg')
    for file in list(root.glob('*.xml'))[2:]:
        file.write_text('<annotation></annotation>')
    for seed in range(3):
        dataset = read_dataset(root)
        complete_splits(dataset, 0.25, seed)
        assert all(map(has_objects, dataset.splits.values())) and len(dataset.splits['val']) == 3
    file.with_name(next(x.path.stem for x in dataset.splits['val'] if x.boxes) + '.xml').unlink()
    with pytest.raises(ConfigError, match='too few images with objects'):
        complete_splits(read_dataset(root), 0.25, 0)


@pytest.mark.parametrize('split', ['val', 'test'])
def test_a_split_without_objects_is_left_out(tiny_coco, tmp_path, split):
    root = write_layout('yolo', tiny_coco, tmp_path / 'yolo')
    shutil.copytree(root / 'valid/images', root / 'test/images')
    if split == 'val':
        shutil.rmtree(root / 'valid/labels')
    dataset = read_dataset(root)
    assert split not in dataset.splits
    assert any(x.startswith(f'{split} has no objects to find') for x in dataset.notes)


def test_classes_are_called_as_they_are_written_or_numbered(tiny_coco, tmp_path):
    """YAML reads some words and numbers as other values."""
    root = write_layout('yolo', tiny_coco, tmp_path / 'yolo')
    for names, classes in (('names: [no, 007, 1_0]', ['no', '007', '1_0']),
                           ('nc: 3', ['class_0', 'class_1', 'class_2'])):
        (root / 'data.yaml').write_text(f'train: train/images\n{names}')
        assert read_dataset(root).classes == classes


def test_an_accent_may_be_written_as_a_letter(tiny_coco, tmp_path):
    """As a Mac does in the names of files, but no tool in a label file."""
    root = write_layout('coco', tiny_coco, tmp_path / 'data')
    rename(root, 'photos/*', lambda x: f'e\u0301{x.name}')
    edit_json(root, lambda x: [y.update(file_name=f'\xe9{y["file_name"]}') for y in x['images']])
    assert len(read_dataset(root).splits['train']) == 12


def test_a_name_without_its_suffix_may_have_dots(tiny_coco, tmp_path):
    root = write_layout('coco', tiny_coco, tmp_path / 'data')
    rename(root, 'photos/*', lambda x: f'2.1 {x.name}')
    edit_json(root, lambda x: [
        y.update(file_name=f'2.1 {Path(y["file_name"]).stem}') for y in x['images']])
    assert len(read_dataset(root).splits['train']) == 12


def test_the_only_split_is_for_training_and_noted(tiny_coco, tmp_path):
    root = write_layout('yolo', tiny_coco, tmp_path / 'yolo')
    set_yaml(root, train=None, test=None)
    dataset = read_dataset(root)
    assert described(dataset, 'train') == expected(tiny_coco, 'val')
    assert any(x.startswith('val is the only split') for x in dataset.notes)


def test_a_name_that_is_no_text_can_be_noted(tiny_coco, tmp_path):
    """As from an archive of Windows."""
    root = write_layout('yolo', tiny_coco, tmp_path / 'yolo')
    os.rename(first(root, '*.jpg'), os.fsencode(root / 'train/images') + b'/\xfc.jpg')
    assert [x.encode() for x in read_dataset(root).notes if '?.jpg' in x]


def test_a_test_split_serves_as_validation(tiny_coco, tmp_path):
    root = write_layout('roboflow', tiny_coco, tmp_path / 'data')
    (root / 'valid').rename(root / 'test')
    dataset = read_dataset(root)
    complete_splits(dataset, 0.2, 0)
    assert described(dataset, 'val') == expected(tiny_coco, 'val') and 'test' not in dataset.splits


FAULTS = {
    'class beyond names': ('yolo', lambda r: set_line(r, '3 .5 .5 .1 .1'),
                           'train_0.txt line 1 has the class 3, and the classes are numbered'),
    'pixels in YOLO': ('yolo', lambda r: set_line(r, '0 32 32 10 10'), 'numbers beyond 0 to 1'),
    'a word': ('yolo', lambda r: set_line(r, '0 .5 .5 .1 wide'), "'wide'"),
    'four numbers': ('yolo', lambda r: set_line(r, '0 .5 .5 .1'), 'has 4 numbers'),
    'names with a gap': ('yolo', lambda r: (r / 'data.yaml').write_text(
        'names: {0: a, 2: b}\ntrain: train/images'), 'numbered from 0 without a gap'),
    'another number of names': ('yolo', lambda r: set_yaml(r, nc=2),
                                'data.yaml: nc is 2, and names has 3 names'),
    'names in dicts': ('yolo', lambda r: set_yaml(r, names=[{0: 'red'}, {1: 'green'}]),
                       'must be a list of the names'),
    'two exports': ('yolo', lambda r: move_into(r, 'a') or shutil.copytree(r / 'a', r / 'b'),
                    'a/data.yaml and .*b/data.yaml: name the right file'),
    'no such images': ('yolo', lambda r: [x.rename(x.with_suffix('.heic'))
                                          for x in r.glob('train/*/*.jpg')],
                       'no image to train on .*folders without an image: 1.*end in .jpg'),
    'YAML in UTF-16': ('yolo', lambda r: edit_all(
        r, 'data.yaml', lambda x: x.decode().encode('utf-16')), 'data.yaml cannot be read'),
    'no training images': ('yolo', lambda r: replace(r / 'data.yaml', '/train/', '/trian/'),
                           'train names ../trian/images, which does not exist'),
    'cut JSON': ('coco', lambda r: first(r, '*.json').write_text('{"images": ['),
                 'all.json is not valid JSON'),
    'no list': ('coco', lambda r: edit_json(r, lambda x: x.update(images={})), "no list 'images'"),
    'NaN in COCO': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'][0]['bbox'].__setitem__(0, float('nan'))),
        'all.json annotation 1 has a box that is not finite .*nan'),
    'a box far too large': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'][0]['bbox'].__setitem__(2, 1e30)),
        'annotation 1 has a box more than 10 times'),
    'unknown category': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'][0].update(category_id=9)), 'of the category 9'),
    'a list of categories': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'][0].update(category_id=[1])), 'category_id=.*in annotations'),
    'a number too large': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'][0]['bbox'].__setitem__(0, 10**400)),
        'annotation 1 has 1000.*0'),
    'same image id': ('coco', lambda r: edit_json(
        r, lambda x: x['images'][0].update(id=x['images'][1]['id'])), 'images with the same id'),
    'another size': ('coco', lambda r: edit_json(
        r, lambda x: x['images'][0].update(width=65)), 'has the size 65 x 64 for .*64 x 64'),
    'swapped corners': ('voc', lambda r: replace(
        first(r, '*.xml'), '<xmax>', '<xmax>-'), 'a box with swapped corners'),
    'cut XML': ('labelimg', lambda r: first(r, '*.xml').write_text('<annotation><object>'),
                'train_0.xml is not valid XML'),
    'no box': ('labelimg', lambda r: first(r, '*.xml').write_text(
        '<annotation><object><name>a</name></object></annotation>'), 'a without bndbox'),
    'difficult objects': ('voc', lambda r: edit_lines(r, '*.xml', lambda x: x.replace(
        '</name>', '</name><difficult>1</difficult>')), 'no image with an object to train on'),
    'XML that is listed': ('voc', lambda r: first(r, '*.xml').unlink(),
                           'train_0.xml does not exist, and .*train.txt names it'),
    'no labels': ('labelimg', lambda r: [x.unlink() for x in r.glob('*.xml')], 'has no labels'),
    'names of several images': ('coco', lambda r: [
        first(r, '*.jpg').replace(r / 'photos/train_1.jpg'), (r / 'a').mkdir(), (r / 'b').mkdir(),
        *(shutil.copy(r / 'photos/train_2.jpg', r / x / 'train_0.jpg') for x in 'ab')],
        'has labels for train_0.jpg, which is .*a/train_0.jpg or .*b/train_0.jpg'),
    'no images': ('yolo', lambda r: name_classes_in(r, 'classes.txt') or [
        x.unlink() for x in r.rglob('*.jpg')], 'has no images, which end in .jpg'),
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


def test_a_folder_that_cannot_be_read_is_refused(tiny_coco, tmp_path, monkeypatch):
    """Its images would be missing without a word."""
    root, scan = write_layout('yolo', tiny_coco, tmp_path / 'yolo'), os.scandir

    def scandir(path):
        if Path(path).name == 'valid':
            raise PermissionError(13, 'Permission denied', path)
        return scan(path)

    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(ConfigError, match='valid cannot be read .Permission denied'):
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
    ('coco', lambda r: first(r, '*.jpg').unlink(), 'missing images, left out: 1'),
    ('roboflow', lambda r: (r / 'valid').rename(r / 'rest'), 'for no split, used for training: 1'),
    ('labelimg', lambda r: first(r, '*.jpg').write_bytes(first(r, '*.jpg').read_bytes()[:-9]),
     'unreadable images, left out: 1, first .*it is cut short'),
    ('labelimg', lambda r: cv2.imwrite(str(first(r, '*.jpg').with_suffix('.tif')), np.zeros(
        (64, 64, 3), np.float32)) and first(r, '*.jpg').unlink(),
     'unreadable images, left out: 1, first .*32 bits for a color'),
    ('labelimg', lambda r: first(r, '*.xml').unlink(), 'images without XML, left out: 1'),
    ('yolo', lambda r: first(r, '*.txt').unlink(),
     'images without a label file, taken as background: 1, first .*train_0.jpg, whose labels '
     'would be .*labels/train_0.txt'),
    ('yolo', lambda r: set_yaml(r, val='train/images'), 'images that occur twice.*: 8'),
    ('yolo', lambda r: list_images(r, './{}/images/{}') or replace(
        r / 'valid.txt', './valid', 'gone.jpg\n./valid'),
     'missing images, left out: 1, first gone.jpg of .*valid.txt'),
    ('yolo', lambda r: set_line(r, '0 .5 .5 1.2 .5 1.2 .7'), 'over the edge .*clipped: 1'),
    ('coco', lambda r: edit_json(r, lambda x: x['annotations'][0].update(ignore=1)),
     'iscrowd or ignore, .*: 1'),
    ('voc', lambda r: edit_lines(r, 'val.txt', lambda x: x.replace('val_0', 'val_1')),
     'XML files that no list of ImageSets names, left out: 1, first .*val_0.xml'),
    ('voc', lambda r: replace(first(r, '*.xml'), '</name>', '</name><difficult>1</difficult>'),
     'objects that are marked difficult, .*: 1'),
    ('yolo', lambda r: set_line(r, '0 .99 .5 .1 .1'), 'over the edge .*clipped: 1, .* line 1'),
    ('yolo', lambda r: set_line(r, '0 .5 .5 0 .1'), 'boxes without area .*: 1'),
])
def test_what_is_left_out_is_noted(tiny_coco, tmp_path, kind, damage, note):
    root = write_layout(kind, tiny_coco, tmp_path / 'data' / kind)
    damage(root)
    dataset = read_dataset(root)
    text = '\n'.join(dataset.notes)
    assert re.search(note, text), text


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tif'])
def test_a_size_is_that_of_the_image_as_it_is_loaded(tiny_coco, tmp_path, suffix,
                                                     warnings_logged):
    """OpenCV turns the image by its EXIF data, which labels of YOLO cannot show."""
    root = write_layout('yolo', tiny_coco, tmp_path / 'yolo')
    path = first(root, '*.jpg').rename(root / f'train/images/train_0{suffix}')
    image, exif = Image.new('RGB', (40, 20)), Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    read = read_dataset(root).splits['train'][0]
    assert (read.height, read.width) == mmcv.imread(str(path)).shape[:2] == (40, 20)
    assert suffix == '.tif' or str(path.parent) in warnings_logged()[0]


def test_a_file_chooses_between_two_kinds(tiny_coco, tmp_path):
    """Its images may lie beside its folder, and an XML stands for all."""
    root = write_layout('yolo', tiny_coco, tmp_path / 'data')
    shutil.copytree(write_layout('voc', tiny_coco, tmp_path / 'voc'), root, dirs_exist_ok=True)
    (root / 'annotations').mkdir()
    shutil.copy(tiny_coco / 'train.json', root / 'annotations')
    for file in ('data.yaml', 'annotations/train.json', 'Annotations/train_0.xml'):
        assert described(read_dataset(root / file), 'train') == expected(tiny_coco, 'train')
    with pytest.raises(ConfigError, match='labels of several kinds'):
        read_dataset(root)


def test_equal_names_in_many_folders_are_told_apart(tiny_coco, tmp_path):
    """By the folders of the XML files, whose names the folders of the images have."""
    root = write_layout('labelimg', tiny_coco, tmp_path / 'data')
    before = {x.path.read_bytes(): x.boxes for x in read_dataset(root).splits['train']}
    for i, image in enumerate(sorted(root.glob('*.jpg'))):
        for file, folder in ((image, 'photos'), (image.with_suffix('.xml'), 'labels')):
            place = root / folder / 'abc'[i % 3] / f'{i // 3}{file.suffix}'
            place.parent.mkdir(parents=True, exist_ok=True)
            file.rename(place)
    images = read_dataset(root).splits['train']
    assert {x.path.read_bytes(): x.boxes for x in images} == before and len(before) == 12


FOREIGN = {  # formats that are not read: the file, its text, and what the error names
    'labelme': ('a.json', '{"version": "5", "shapes": [], "imagePath": "a.jpg"}', 'labelme'),
    'VIA': ('via.json', '{"a.jpg12": {"filename": "a.jpg", "regions": []}}', 'VIA'),
    'CreateML': ('a.json', '[{"image": "a.jpg", "annotations": [{"coordinates": {"x": 1}}]}]',
                 'CreateML'),
    'Label Studio': ('a.json', '[{"data": {"image": "a.jpg"}, "annotations": []}]', None),
    'CVAT': ('a.xml', '<?xml version="1.0"?>\n<annotations>\n<image id="0" name="a.jpg"/>\n'
             '</annotations>', 'CVAT'),
    'Open Images': ('a.csv', 'ImageID,Source,LabelName,Confidence\na,,cat,1', 'Open Images'),
    'results': ('a.csv', 'epoch,loss\n1,2', None)}


@pytest.mark.parametrize('name', FOREIGN)
def test_a_foreign_format_and_its_converter_are_named(tmp_path, name):
    file, text, kind = FOREIGN[name]
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=(
            f'format {kind} .*convert it to COCO with' if kind else 'has no images')):
        read_dataset(tmp_path)
