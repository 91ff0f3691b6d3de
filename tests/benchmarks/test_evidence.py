"""The trainings behind docs/choose-k.md, with a handful of images."""
import functools
import json

import cv2
import numpy as np
import pytest

from benchmarks import evidence, evidence_report
from benchmarks.evidence import PRETRAINED, Cell
from benchmarks.evidence_report import Row
from groupdetr_mmdet.data.shapes import make_shapes

FEW = functools.partial(make_shapes, num_train=12, num_val=4, size=64)


def test_the_documentation_has_what_was_measured():
    results = evidence.read_results(evidence.RESULTS)
    for name in evidence_report.PAGES:
        page = (evidence_report.DOCS / name).read_text()
        assert evidence_report.fill_page(page, results) == page


def test_differences_are_paired_by_data_set_and_seed():
    first = Row('K = 1', 1, 1., {('a', 0): .1, ('b', 0): .5, ('b', 1): .4})
    other = Row('K = 3', 1, 1., {('b', 1): .6, ('a', 0): .2, ('c', 0): .9})
    gains = other.gains(first)
    assert gains == pytest.approx([.1, .2])
    assert evidence_report.interval(gains) == pytest.approx(12.706 * .05, rel=1e-3)
    assert np.isnan(evidence_report.interval(gains[:1]))


def test_shrunken_images_keep_their_objects(tmp_path):
    make_shapes(str(tmp_path / 'large'), num_train=6, num_val=4, size=256)
    evidence.shrink(tmp_path / 'large', tmp_path / 'small')
    large, small = ([json.loads((tmp_path / name / f'{split}.json').read_text())
                     for split in ('train', 'val')] for name in ('large', 'small'))
    boxes = [sorted(x['bbox'] for coco in cocos for x in coco['annotations'])
             for cocos in (large, small)]
    np.testing.assert_allclose(np.array(boxes[0]) / 2, boxes[1], atol=1e-6)
    assert [len(coco['images']) for coco in small] == [7, 3]
    for image in small[0]['images']:
        assert cv2.imread(str(tmp_path / 'small' / image['file_name'])).shape == (128, 128, 3)


@pytest.mark.slow
def test_results_are_kept_and_not_trained_again(tmp_path, monkeypatch):
    FEW(str(tmp_path / 'bccd'))
    monkeypatch.setattr(evidence, 'make_shapes', FEW)
    monkeypatch.setattr(evidence, 'STUDIES', {
        'pretraining': {'K = 1': Cell(epochs=1, start='nothing')},
        'fine-tuning': {'K = 2': Cell(2, 1, anew=True)}, 'backbone': {'K = 2': Cell(2, 1, {
            'model.num_queries': 4}, 'backbone')}})
    monkeypatch.setattr('sys.argv', [
        'evidence', '--data', str(tmp_path), '--work-dir', str(tmp_path / 'work'),
        '--results', str(tmp_path / 'results.json'), '--sets', 'bccd', '--seeds', '0'])
    evidence.main()
    first = json.loads((tmp_path / 'results.json').read_text())
    assert list(first) == ['backbone/bccd/K = 2/0', 'fine-tuning/bccd/K = 2/0',
                           PRETRAINED['detector']]
    for result in first.values():
        assert [point[0] for point in result['curve']] == [1] and result['seconds_per_step'] > 0
    monkeypatch.setattr(evidence, 'train', None)
    evidence.main()
    assert json.loads((tmp_path / 'results.json').read_text()) == first
