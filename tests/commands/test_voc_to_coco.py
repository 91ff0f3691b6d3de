"""Annotations in Pascal VOC format become COCO's, and nothing is lost on the way."""
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CocoDataset, XMLDataset
from running import run_tool

CLASSES = ('RBC', 'Platelets')
SPLITS = dict(train=('BloodImage_3', 'BloodImage_1'), val=('BloodImage_2', ))

IMAGE = '<annotation><size><width>{}</width><height>{}</height></size>{}</annotation>'
OBJECT = ('<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>'
          '<ymax>{}</ymax></bndbox></object>')


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three images of 64 x 48; every second object is of no class, and one image has none."""
    root = tmp_path / 'voc'
    for folder in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, names in SPLITS.items():
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')
        for name in names:
            objects = [
                OBJECT.format(label, *rng.integers(1, 20, 2), *rng.integers(20, 48, 2))
                for label in ('RBC', 'WBC', 'Platelets', 'WBC', 'RBC')]
            text = '' if name == 'BloodImage_1' else ''.join(objects)
            (root / f'Annotations/{name}.xml').write_text(IMAGE.format(64, 48, text))
            cv2.imwrite(str(root / f'JPEGImages/{name}.jpg'), np.zeros((48, 64, 3), np.uint8))
    return root


@pytest.mark.parametrize('split', SPLITS)
def test_boxes_and_classes_are_those_that_mmdet_reads(voc: Path, split: str):
    out = voc.parent / 'coco'
    assert run_tool('voc_to_coco', voc, out, '--classes', *CLASSES) == 0
    metainfo = dict(classes=CLASSES)
    coco = CocoDataset(
        ann_file=str(out / f'{split}.json'), data_prefix=dict(img=str(voc / 'JPEGImages')),
        metainfo=metainfo, test_mode=True, pipeline=[])
    xml = XMLDataset(
        ann_file=f'ImageSets/Main/{split}.txt', data_root=str(voc), metainfo=metainfo,
        data_prefix=dict(sub_data_root=str(voc)), test_mode=True, pipeline=[])
    assert len(coco) == len(xml) == len(SPLITS[split])
    for mine, theirs in zip(coco, xml):
        assert Path(mine['img_path']) == Path(theirs['img_path'])
        assert (mine['width'], mine['height']) == (theirs['width'], theirs['height']) == (64, 48)
        assert ([x['bbox_label'] for x in mine['instances']]
                == [x['bbox_label'] for x in theirs['instances']])
        # mmdet counts pixels from 0, the XML from 1.
        np.testing.assert_array_equal(
            np.reshape([x['bbox'] for x in mine['instances']], (-1, 4)),
            np.reshape([x['bbox'] for x in theirs['instances']], (-1, 4)) + 1)


@pytest.mark.parametrize('args, message', [
    (['--classes', 'cat'], 'no object of .*Annotations is one of cat'),
    (['--classes', 'RBC', '--splits', 'test'], 'test.txt does not exist; the first argument'),
])
def test_mistakes(voc: Path, args: list, message: str, capsys: pytest.CaptureFixture):
    assert run_tool('voc_to_coco', voc, voc.parent / 'coco', *args) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1
    assert re.search(message, error)
    assert not (voc.parent / 'coco').exists()
