"""The ONNX model finds what the detector finds, for any number and size of images."""
import copy
from importlib.util import find_spec
from typing import Optional

import pytest
import torch
from builders import build, detector_config
from family_builders import FAMILIES, config_of
from mask_builders import mask2former_config
from mmengine.config import Config
from mmengine.structures import InstanceData
from running import run_tool
from tiny import build_detector, write_detector

import groupdetr_mmdet.deploy.export as export
from benchmarks.forms import openvino_model
from groupdetr_mmdet.deploy.export import (OnnxDetector, check_onnx, largest_differences,
                                           predict, random_batch)
from groupdetr_mmdet.errors import ConfigError

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp('export'))


@pytest.fixture(scope='module')
def exported(files):
    """An ONNX file of query group 1."""
    path = files.data.parent / 'detector.onnx'
    assert run_tool('export_onnx', files.config, files.checkpoint, path, '--query-group', 1) == 0
    return path


def detector_of(files, group: int):
    config = Config.fromfile(files.config)
    config.model.test_cfg.query_group = group
    detector = build_detector(config)
    detector.load_state_dict(torch.load(files.checkpoint)['state_dict'])
    return detector


def build_family(family: str, groups: Optional[int]) -> torch.nn.Module:
    """A detector in evaluation mode whose queries differ, with the last of its groups."""
    detector = build(config_of(family, groups, paired=groups is None)).eval()
    with torch.no_grad():
        for parameter in detector.bbox_head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if groups:
        detector.test_cfg['query_group'] = groups - 1
    return detector


def detections(boxes, scores, labels) -> InstanceData:
    return InstanceData(bboxes=boxes, scores=scores, labels=labels)


@pytest.mark.parametrize('family, groups', [
    *((family, 3) for family in FAMILIES), ('conditional', None), ('two_stage', None)])
def test_every_family_in_every_runtime(family, groups, tmp_path):
    """Writing compares the file in onnxruntime, in images of other sizes."""
    detector, path = build_family(family, groups), tmp_path / 'detector.onnx'
    before = dict(detector.bbox_head.test_cfg)
    sizes = [[(64, 64)], [(50, 70), (51, 69), (96, 33)]]
    found = [export.export_onnx(detector, path, {}),
             check_onnx(str(path), detector, sizes)]
    if find_spec('openvino'):
        found.append(check_onnx(str(path), detector, sizes, openvino_model))
    for differences in found:
        assert differences['pixels'] < 1e-2 and differences['score'] < 1e-5
    assert detector.bbox_head.test_cfg == before
    if groups:
        detector.test_cfg['query_group'] = 0
        with pytest.raises(RuntimeError):
            check_onnx(str(path), detector, sizes)


def test_a_softmax_has_one_class_a_query():
    config = detector_config(num_query_groups=None, width=256)
    config['bbox_head']['loss_cls'] = dict(type='CrossEntropyLoss')
    detector = build_detector(Config(dict(model=config)))
    images, image_sizes = random_batch([(61, 95), (97, 31)])
    with torch.no_grad():
        outputs = OnnxDetector(detector)(images, image_sizes)
    for i, expected in enumerate(predict(detector, images, image_sizes.tolist())):
        for actual, name in zip(outputs, ('bboxes', 'scores', 'labels')):
            torch.testing.assert_close(actual[i], expected[name])
        assert len(expected.scores) == detector.num_queries


def test_a_model_that_detects_something_else_is_not_written(exported, files, tmp_path, monkeypatch,
                                                            last_error):
    monkeypatch.setattr(export, 'trace', lambda module, opset: exported.read_bytes())
    out = tmp_path / 'out.onnx'
    out.write_text('from before')
    line = last_error('export_onnx', files.config, files.checkpoint, out, '--query-group', 0)
    assert f'{out} is not written' in line and 'PyTorch' in line
    assert [path.read_text() for path in tmp_path.iterdir()] == ['from before']
    export.export_onnx(detector_of(files, 1), out, {})
    assert onnx.load(out).graph.output


def test_differences_are_measured_whatever_the_order():
    torch.manual_seed(0)
    expected = detections(torch.rand(8, 4) * 100, torch.linspace(.9, .2, 8), torch.arange(8) % 3)
    expected.scores[2:5] = expected.scores[3]
    order = torch.tensor([0, 1, 4, 2, 3, 5, 6, 7])
    shifted = expected[order]
    shifted.bboxes[3] += 0.05
    found = largest_differences(shifted, expected, side=100)
    assert found['pixels'] == pytest.approx(0.05, rel=1e-3) and found['score'] == 0
    for field, amount in dict(bboxes=1, scores=0.01, labels=1).items():
        wrong = copy.deepcopy(expected)
        wrong[field][0] += amount
        with pytest.raises(RuntimeError):
            largest_differences(wrong, expected, side=100)
    cut = expected[order][:3]  # one of three equal scores got in
    assert largest_differences(cut, expected, side=100) == dict(pixels=0, score=0, swapped=0)


def test_a_share_of_others_is_counted_where_ranks_may_swap():
    expected = detections(torch.rand(50, 4) * 100, torch.linspace(.9, .2, 50), torch.arange(50))
    swapped = copy.deepcopy(expected)
    swapped.bboxes[7] += 50
    found = largest_differences(swapped, expected, 100, swapped=0.02)
    assert found == dict(pixels=0, score=0, swapped=0.02)
    swapped.bboxes[8] += 50
    with pytest.raises(RuntimeError, match='label [78] .* is missing'):
        largest_differences(swapped, expected, 100, swapped=0.02)


def test_what_cannot_be_exported_is_refused(files, tmp_path, last_error):
    for detector in (torch.nn.Linear(1, 1), build(mask2former_config())):
        with pytest.raises(ConfigError, match=f'model.type={type(detector).__name__} cannot be'):
            OnnxDetector(detector)
    weights = torch.load(files.checkpoint)
    weights['meta']['dataset_meta'] = dict(classes=('one', 'two'))
    torch.save(weights, tmp_path / 'two.pth')
    for checkpoint, options, words in (
            (files.checkpoint, '--opset 13', '--opset 13'),
            (files.checkpoint, '--cfg-options model.test_cfg.query_group=all', 'query_group=all'),
            (tmp_path / 'two.pth', '', 'num_classes=3')):
        out = tmp_path / 'out.onnx'
        assert words in last_error('export_onnx', files.config, checkpoint, out, *options.split())
        assert not out.exists()
