"""One data set in the layouts that people have."""
import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Dict

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as mask_utils
from tiny import CLASSES

OBJECT = ('<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>'
          '<ymax>{}</ymax></bndbox></object>')
FOLDERS = dict(train='train', val='valid')
SIZE = '<size><width>{}</width><height>{}</height><depth>3</depth></size>'


def write_layout(kind: str, coco: Path, root: Path) -> Path:
    """Write the data set of ``coco`` to ``root``, in one of ``LAYOUTS``; return ``root``."""
    splits = {split: json.loads((coco / f'{split}.json').read_text())
              for split in ('train', 'val')}
    for content in splits.values():
        for image in content['images']:
            image.update(
                path=coco / 'images' / image['file_name'], stem=Path(image['file_name']).stem,
                objects=[x for x in content['annotations'] if x['image_id'] == image['id']])
    root.mkdir(parents=True)
    LAYOUTS[kind](splits, root)
    return root


def copy_image(image: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(image['path'], folder / image['file_name'])


def write_yolo(splits: Dict[str, dict], root: Path) -> None:
    """As Roboflow exports it: ``../train/images`` stands for ``train/images``."""
    for split, content in splits.items():
        folder = root / FOLDERS[split]
        (folder / 'labels').mkdir(parents=True)
        for image in content['images']:
            copy_image(image, folder / 'images')
            width, height = image['width'], image['height']
            boxes = ((ann['category_id'] - 1, *ann['bbox']) for ann in image['objects'])
            (folder / f'labels/{image["stem"]}.txt').write_text('\n'.join(
                f'{label} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}'
                for label, x, y, w, h in boxes))
    config = dict(train='../train/images', val='../valid/images', test='../test/images',
                  nc=len(CLASSES), names=list(CLASSES))
    (root / 'data.yaml').write_text(yaml.safe_dump(config))


def without_paths(content: dict) -> dict:
    return dict(content, images=[{key: x for key, x in image.items() if key not in (
        'path', 'stem', 'objects')} for image in content['images']])


def write_coco(splits: Dict[str, dict], root: Path) -> None:
    """One JSON of all images, which lie below it."""
    merged = dict(images=[], annotations=[], categories=splits['train']['categories'])
    for split, content in splits.items():
        offset = 1000 * (split == 'val')
        merged['images'] += [dict(x, id=x['id'] + offset)
                             for x in without_paths(content)['images']]
        merged['annotations'] += [
            dict(x, id=x['id'] + 10 * offset, image_id=x['image_id'] + offset)
            for x in content['annotations']]
        for image in content['images']:
            copy_image(image, root / 'photos')
    (root / 'annotations').mkdir()
    (root / 'annotations/all.json').write_text(json.dumps(merged))


def write_roboflow(splits: Dict[str, dict], root: Path) -> None:
    """COCO for each split, with a category above the others."""
    for split, content in splits.items():
        folder = root / FOLDERS[split]
        for image in content['images']:
            copy_image(image, folder)
        content = without_paths(content)
        content['categories'] = [dict(id=0, name='things', supercategory='none'), *(
            dict(x, supercategory='things') for x in content['categories'])]
        (folder / '_annotations.coco.json').write_text(json.dumps(content))


def write_xml(image: dict, file: Path, size: bool) -> None:
    objects = [OBJECT.format(CLASSES[ann['category_id'] - 1], x, y, x + w, y + h)
               for ann in image['objects'] for x, y, w, h in [ann['bbox']]]
    text = SIZE.format(image['width'], image['height']) if size else ''
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'<annotation><filename>{image["file_name"]}</filename>{text}'
                    f'{os.linesep.join(objects)}</annotation>')


def write_voc(splits: Dict[str, dict], root: Path) -> None:
    """With ``ImageSets``."""
    sets = root / 'ImageSets/Main'
    sets.mkdir(parents=True)
    for split, content in splits.items():
        for image in content['images']:
            copy_image(image, root / 'JPEGImages')
            write_xml(image, root / f'Annotations/{image["stem"]}.xml', size=True)
        (sets / f'{split}.txt').write_text(''.join(f'{x["stem"]}\n' for x in content['images']))


def write_labelimg(splits: Dict[str, dict], root: Path) -> None:
    """Each XML beside its image, without a size and without splits."""
    for content in splits.values():
        for image in content['images']:
            copy_image(image, root)
            write_xml(image, root / f'{image["stem"]}.xml', size=False)


LAYOUTS = dict(yolo=write_yolo, coco=write_coco, roboflow=write_roboflow, voc=write_voc,
               labelimg=write_labelimg)


def described(dataset, split: str) -> dict:
    """Images by their names: size, and each object's class and box."""
    return {image.path.name: (image.width, image.height,
                              [(x.name, *np.round(x.xyxy, 3)) for x in image.boxes])
            for image in dataset.splits[split]}


def expected(coco: Path, split: str) -> dict:
    content = json.loads((coco / f'{split}.json').read_text())
    boxes = [(ann['image_id'], CLASSES[ann['category_id'] - 1], *ann['bbox'])
             for ann in content['annotations']]
    return {image['file_name']: (image['width'], image['height'], [
        (name, x, y, x + w, y + h) for i, name, x, y, w, h in boxes if i == image['id']])
        for image in content['images']}


def check_same(dataset, coco: Path, kind: str) -> None:
    """Check that a data set that was read from a layout is that of ``coco``."""
    assert sorted(dataset.classes) == sorted(CLASSES)
    train, val = (expected(coco, split) for split in ('train', 'val'))
    if kind in ('coco', 'labelimg'):  # of one split
        assert described(dataset, 'train') == {**train, **val}
    else:
        assert (described(dataset, 'train'), described(dataset, 'val')) == (train, val)


def first(root: Path, pattern: str) -> Path:
    return sorted(root.rglob(pattern))[0]


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def set_line(root: Path, line: str) -> None:
    first(root, '*.txt').write_text(line)


def edit_lines(root: Path, pattern: str, edit) -> None:
    for file in root.rglob(pattern):
        file.write_text(''.join(f'{edit(line)}\n' for line in file.read_text().splitlines()))


def edit_json(root: Path, change) -> None:
    file = first(root, '*.json')
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def rle_of(annotation: dict, cut: int = 0) -> dict:
    mask = np.zeros((64, 64), np.uint8, order='F')
    left, top, width, height = annotation['bbox']
    mask[top:top + height, left:left + width] = 1
    counts = mask_utils.encode(mask)['counts'].decode()
    return dict(size=[64, 64], counts=counts[:len(counts) - cut])


def write_exif(path: Path, orientation: int, size: tuple) -> None:
    """Write a black JPEG of (height, width) with an orientation of four bytes."""
    entry = struct.pack('<HHII', 0x0112, 4, 1, orientation)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(
        path, exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0' + entry + bytes(4))


def write_huge(path: Path, side: int = 40_000) -> None:
    """The start and end of a PNG of more pixels than OpenCV reads."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(
            name + data))

    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack(
        '>IIBBBBB', side, side, 8, 0, 0, 0, 0)) + chunk(b'IDAT', b'') + chunk(b'IEND', b''))
