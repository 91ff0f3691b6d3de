"""Folders that people have, which were refused or misread: what ``prepare`` makes of them."""
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from layout_builders import (check_same, edit_json, edit_lines, first, rle_of, write_exif,
                             write_huge, write_layout)
from mmengine.config import Config
from running import run_tool
from tiny import CLASSES

from groupdetr_mmdet.data.layouts import read_dataset
from groupdetr_mmdet.errors import ConfigError


def each(part, change):
    return lambda root: edit_json(root, lambda coco: [change(entry) for entry in coco[part]])


def split_in_jobs(root: Path) -> None:
    """As several jobs of an annotation tool: a folder and a file for each."""
    whole = json.loads(first(root, '*.json').read_text())
    for i, part in enumerate((whole['images'][:5], whole['images'][5:])):
        ids = {image['id'] for image in part}
        (root / f'job{i}').mkdir()
        (root / f'job{i}/annotations.json').write_text(json.dumps(dict(
            whole, images=part, categories=whole['categories'][::1 - 2 * i],
            annotations=[x for x in whole['annotations'] if x['image_id'] in ids])))
        for image in part:
            (root / 'photos' / image['file_name']).rename(root / f'job{i}' / image['file_name'])
    shutil.rmtree(root / 'annotations')


def name_by_address(image: dict) -> None:
    image['coco_url'] = f'http://images.org/train2017/{image.pop("file_name")}'


def box_to_polygon(annotation: dict) -> None:
    left, top, width, height = annotation.pop('bbox')
    annotation['segmentation'] = [[left, top, left + width, top + height / 2, left + width,
                                   top + height, left, top + height]]


def box_to_rle(annotation: dict) -> None:
    annotation['segmentation'] = rle_of(annotation)
    del annotation['bbox']


def add_trainval(root: Path) -> None:
    parts = [json.loads(x.read_text()) for x in root.rglob('*.json')]
    (root / 'trainval.json').write_text(json.dumps(dict(
        parts[0], images=[dict(image, id=1000 * i + image['id'])
                          for i, part in enumerate(parts) for image in part['images']],
        annotations=[])))


def add_pictures(root: Path) -> None:
    """Photos with boxes drawn in, as labelme2voc writes them."""
    for image in (root / 'JPEGImages').iterdir():
        (root / 'AnnotationsVisualization').mkdir(exist_ok=True)
        shutil.copy(image, root / 'AnnotationsVisualization' / image.name)


def add_key_points(root: Path) -> None:
    """Behind each box two key points in it, and what is seen of them."""
    (root / 'data.yaml').unlink()
    (root / 'classes.txt').write_text('\n'.join(CLASSES))

    def pose(line):
        x, y = line.split()[1:3]
        return f'{line} {x} {y} 2 0 0 0'

    edit_lines(root, 'labels/*.txt', pose)


def add_panoptic(root: Path) -> None:
    """Segments of each image in the place of its objects."""
    content = json.loads(first(root, '*.json').read_text())
    segments = [dict(id=i, **{x: ann[x] for x in ('category_id', 'bbox', 'area', 'iscrowd')})
                for i, ann in enumerate(content['annotations'], 1)]
    content['annotations'] = [dict(image_id=image['id'], file_name='a.png', segments_info=segments)
                              for image in content['images']]
    (root / 'segments.json').write_text(json.dumps(content))


# The layout, what is done to it, and what is noted; the data set is the same.
SAME = {
    'several jobs of COCO': ('coco', split_in_jobs, ''),
    'addresses of images': ('coco', each('images', name_by_address), ''),
    'polygons without boxes': ('coco', each('annotations', box_to_polygon), ''),
    'masks without boxes': ('coco', each('annotations', box_to_rle), ''),
    'names as in an address': ('coco', each('images', lambda x: x.update(
        file_name=f'/data/upload/{x["file_name"].replace("_", "%5F")}')), ''),
    'ids as texts and fractions': ('coco', each('annotations', lambda x: x.update(
        image_id=str(x['image_id']), category_id=float(x['category_id']))), ''),
    'a long text before all else': ('coco', lambda r: edit_json(r, lambda x: [
        x.update(info='.' * 2**20), *(x.update({key: x.pop(key)}) for key in list(x)[:3])]), ''),
    'boxes of fractions': ('coco', each('annotations', lambda x: x.update(
        bbox=[y / 64 for y in x['bbox']])), 'fractions'),
    'annotations of images that were cut out': ('coco', lambda r: edit_json(
        r, lambda x: x['annotations'].append(dict(x['annotations'][0], image_id=1234))),
        'does not list, left out: 1'),
    'annotation ids are UUIDs': ('coco', each(
        'annotations', lambda x: x.update(id=f'{x["id"]}-7d1e')), ''),
    'trainval beside train and val': ('roboflow', add_trainval, 'trainval.json'),
    'panoptic segments beside boxes': ('coco', add_panoptic, 'without detection data.*: 1'),
    'settings with images': ('coco', lambda r: (r / 'app.json').write_text(
        '{"images": {"logo": "a.png"}}'), 'without detection data, left out: 1, first .*app.json'),
    'pictures beside photos': ('voc', add_pictures, ''),
    'a test list without XML': ('voc', lambda r: (r / 'ImageSets/Main/test.txt').write_text(
        '1\n2\n'), 'test set without XML, left out: 2'),
    'key points beside classes.txt': ('yolo', add_key_points, 'key points'),
    'an EXIF orientation of 9': ('voc', lambda r: [
        write_exif(image, 9, (64, 64)) for image in (r / 'JPEGImages').iterdir()], ''),
}


@pytest.mark.parametrize('name', SAME)
def test_the_data_set_is_the_same(tiny_coco, tmp_path, name):
    kind, change, note = SAME[name]
    root = write_layout(kind, tiny_coco, tmp_path / 'data' / kind)
    change(root)
    dataset = read_dataset(root)
    check_same(dataset, tiny_coco, kind)
    notes = [x for x in dataset.notes if not re.match('super-categories|test has no', x)]
    assert len(notes) == bool(note) and re.search(note, ''.join(notes))


def add_masks(root: Path, *folders: str) -> None:
    for image in list(root.rglob('*.jpg')):
        for folder in folders or ('masks', ):
            (root / folder).mkdir(exist_ok=True)
            cv2.imwrite(str(root / folder / f'{image.stem}.png'), np.zeros((64, 64), np.uint8))


def name_alike(root: Path) -> None:
    """Have the same names in both splits, and label files elsewhere."""
    for folder, split in (('train', 'train'), ('valid', 'val')):
        file = root / folder / '_annotations.coco.json'
        file.write_text(file.read_text().replace(f'{split}_', ''))
        (root / 'labels').mkdir(exist_ok=True)
        file.rename(root / f'labels/{split}.json')
        for image in (root / folder).iterdir():
            image.rename(image.with_name(image.name.replace(f'{split}_', '')))


@pytest.mark.parametrize(('kind', 'change', 'image', 'images'), [
    ('coco', add_masks, 'photos/train_2.jpg', 11),
    ('voc', add_masks, 'JPEGImages/train_2.jpg', 7),
    ('voc', lambda root: add_masks(root, 'SegmentationClass', 'SegmentationObject'),
     'JPEGImages/train_2.jpg', 7),
    ('roboflow', name_alike, 'train/2.jpg', 7)])
def test_no_other_image_takes_the_place_of_a_missing_one(tiny_coco, tmp_path, kind, change, image,
                                                         images):
    root = write_layout(kind, tiny_coco, tmp_path / 'data')
    change(root)
    (root / image).unlink()
    dataset = read_dataset(root)
    assert len(dataset.splits['train']) == images
    assert [x for x in dataset.notes if re.search('left out: 1, .*2.(jpg|xml)', x)]


def test_a_label_file_may_have_the_name_of_its_folder(tiny_coco, tmp_path):
    """Which tells images of equal names apart."""
    root = write_layout('roboflow', tiny_coco, tmp_path / 'data')
    boxes = {x.path.read_bytes(): x.boxes for images in read_dataset(root).splits.values()
             for x in images}
    name_alike(root)
    for folder, split, name in (('train', 'train', 'a'), ('valid', 'val', 'b')):
        (root / folder).rename(root / name)
        (root / f'labels/{split}.json').rename(root / f'{name}.json')
    images = read_dataset(root).splits['train']
    assert {x.path.read_bytes(): x.boxes for x in images} == boxes and len(images) == 12


def test_crowds_are_noted_and_classes_without_objects_are_kept(tiny_coco, tmp_path):
    root = write_layout('coco', tiny_coco, tmp_path / 'data')

    def change(coco):
        for annotation in coco['annotations']:
            annotation['iscrowd'] = int(annotation['category_id'] == 3)
        coco['categories'].append(dict(id=9, name='pink', supercategory='pink'))

    edit_json(root, change)
    dataset = read_dataset(root)
    assert dataset.classes == [*CLASSES, 'pink']
    assert re.search('iscrowd .*neither trained nor scored: [1-9]', '\n'.join(dataset.notes))
    each('annotations', lambda x: x.update(iscrowd=1))(root)
    with pytest.raises(ConfigError, match='iscrowd'):
        read_dataset(root)


def test_boxes_of_corners_are_noted(tiny_coco, tmp_path):
    root = write_layout('coco', tiny_coco, tmp_path / 'data')
    each('annotations', lambda x: x.update(bbox=[
        *x['bbox'][:2], x['bbox'][0] + x['bbox'][2], x['bbox'][1] + x['bbox'][3]]))(root)
    assert 'look like left, top, right, bottom' in ''.join(read_dataset(root).notes)


def test_panoptic_segments_alone_are_named(tiny_coco, tmp_path):
    root = write_layout('coco', tiny_coco, tmp_path / 'data')
    add_panoptic(root)
    (root / 'annotations/all.json').unlink()
    with pytest.raises(ConfigError, match='segments.json.* panoptic segments .*11 more like this'):
        read_dataset(root)


def test_files_of_splits_can_be_named(tiny_coco, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, split in (('a', 'train'), ('b', 'val')):
        (tmp_path / f'{name}.json').write_text((tiny_coco / f'{split}.json').read_text())
    args = ['prepare', 'coco', '--weights', 'none', '--model', 'small']
    assert run_tool(*args, '--out', 'mine.py', '--train', 'b.json', '--val', 'a.json') == 0
    cfg = Config.fromfile('mine.py')
    assert [len(json.loads(Path(x.dataset.ann_file).read_text())['images'])
            for x in (cfg.train_dataloader, cfg.val_dataloader)] == [4, 8]
    assert run_tool(*args, '--out', 'more.py', '--train', 'a.json', 'b.json') == 0
    assert run_tool(*args, '--out', 'no.py', '--val', 'b.json') == 2


def test_the_first_fault_of_every_kind_is_named(tiny_coco, tmp_path):
    root = write_layout('coco', tiny_coco, tmp_path / 'data')

    def change(coco):
        for i, annotation in enumerate(coco['annotations'][:4]):
            annotation.update(({'bbox': [5, 5, -3, 3]}, {'category_id': 9})[i % 2])

    edit_json(root, change)
    with pytest.raises(ConfigError, match='swapped corners.*; .*category 9'):
        read_dataset(root)


def test_names_are_no_markup(tiny_coco, tmp_path, capsys):
    root = write_layout('coco', tiny_coco, tmp_path / 'data')
    names = '[/b]', 'door [open]', '[red]'
    edit_json(root, lambda x: [y.update(name=name) for y, name in zip(x['categories'], names)])
    assert run_tool('prepare', root, '--out', tmp_path / 'mine.py', '--weights', 'none') == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names)


def test_an_image_above_two_to_the_thirtieth_pixels_is_noted(tiny_coco, tmp_path):
    root = write_layout('labelimg', tiny_coco, tmp_path / 'data')
    write_huge(first(root, '*.jpg'))
    dataset = read_dataset(root)
    assert len(dataset.splits['train']) == 11 and '2**30' in ''.join(dataset.notes)


@pytest.mark.parametrize(('kind', 'file'), [
    ('yolo', 'data.yaml'), ('coco', 'annotations/all.json'), ('voc', 'Annotations/val_0.xml')])
def test_a_label_file_can_be_trained(tiny_coco, tmp_path, monkeypatch, capsys, kind, file):
    root = write_layout(kind, tiny_coco, tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('groupdetr_mmdet.commands.train.load_config', lambda args: 1 / 0)
    for options, expected in ((['--model', 'small'], 'Wrote'), ([], 'Using')):
        with pytest.raises(ZeroDivisionError):
            run_tool('train', root / file, *options)
        assert expected in capsys.readouterr().out
