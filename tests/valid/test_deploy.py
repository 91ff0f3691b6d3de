"""Valid work that once was refused, wrong or a traceback: predict, export, report."""
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from builders import build
from family_builders import family_config
from mmengine.config import Config
from PIL import Image
from running import run_tool
from tiny import CLASSES, Files, tiny_config, tiny_runner, write_detector, write_tiny_coco

from groupdetr_mmdet.commands import export
from groupdetr_mmdet.deploy.inference import CocoIds, Inferencer
from groupdetr_mmdet.errors import ConfigError

MODEL = dict(num_queries=8, width=32)


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Files:
    return write_detector(tmp_path_factory.mktemp('valid'), **MODEL)


# Images in folders with equal names, file_name in the annotations -> id of each image
IMAGES = {
    'folders in both': (['in/a/0001.jpg', 'in/b/0001.jpg'], {'a/0001.jpg': 7, 'b/0001.jpg': 9},
                        [7, 9]),
    'a folder more in the annotations': (['a/1.jpg', 'b/1.jpg'],
                                         {'x/b/1.jpg': 7, 'x/a/1.jpg': 9}, [9, 7]),
    'other folders': (['photos/1.jpg'], {'train/1.jpg': 7, 'train/2.jpg': 9}, [7]),
    'one annotated, two given': (['a/1.jpg', 'b/1.jpg'], {'a/1.jpg': 7}, None),
    'no folders in the annotations': (['a/1.jpg', 'b/1.jpg'], {'1.jpg': 7}, None),
    'no telling which': (['1.jpg'], {'a/1.jpg': 7, 'b/1.jpg': 9}, None),
}


@pytest.mark.parametrize('row', IMAGES)
def test_ids_of_images_in_folders(row, tmp_path):
    paths, annotated, expected = IMAGES[row]
    ann_file = tmp_path / 'ann.json'
    ann_file.write_text(json.dumps(dict(
        images=[dict(id=i, file_name=name) for name, i in annotated.items()],
        categories=[dict(id=1, name='cat')])))
    if expected is None:
        with pytest.raises(ConfigError, match='--ann-file .* does not determine which image'):
            CocoIds(['cat'], paths, str(ann_file))
    else:
        assert list(CocoIds(['cat'], paths, str(ann_file)).images.values()) == expected


# What is changed in a config -> what the file says of it, None where it is refused
LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackDetInputs', meta_keys=('img_shape', ))
RGB = dict(mean=[127.] * 3, std=[64.] * 3, channels='RGB',
           resize=dict(type='Resize', scale=[80, 64], keep_ratio=True, backend='cv2'))
RESIZE = dict(type='Resize', scale=(80, 64), keep_ratio=True)
NO_RESIZE = dict(RGB, resize=dict(type='Resize', scale=None, keep_ratio=False, backend='cv2'))


def pipeline(*steps: dict) -> dict:
    return {'test_dataloader.dataset.pipeline': [LOAD, *steps, PACK]}


def preprocessor(**settings) -> dict:
    return {f'model.data_preprocessor.{name}': value for name, value in settings.items()}


EXPORTS = {
    'Resize': (pipeline(RESIZE), RGB),
    'mmdet.Resize': (pipeline(dict(RESIZE, type='mmdet.Resize')), RGB),
    'mmcv.Resize': (pipeline(dict(RESIZE, type='mmcv.Resize')), RGB),
    'no Resize': (pipeline(), NO_RESIZE),
    'one size': (pipeline(dict(RESIZE, scale=64, keep_ratio=False)),
                 dict(RGB, resize=dict(RGB['resize'], scale=[64, 64], keep_ratio=False))),
    'RandomChoiceResize to one scale': (pipeline(dict(
        type='RandomChoiceResize', scales=[(80, 64)], keep_ratio=True)), RGB),
    'RandomChoiceResize to two': (pipeline(dict(
        type='RandomChoiceResize', scales=[(80, 64), (96, 64)], keep_ratio=True)), None),
    'RandomFlip': (pipeline(RESIZE, dict(type='RandomFlip', prob=.5)), None),
    'RandomFlip that never flips': (pipeline(RESIZE, dict(type='RandomFlip', prob=0.)), RGB),
    'FixScaleResize': (pipeline(dict(RESIZE, type='FixScaleResize')), None),
    'scale_factor': (pipeline(dict(type='Resize', scale_factor=.5, keep_ratio=True)), None),
    'Pillow': (pipeline(dict(RESIZE, backend='pillow')),
               dict(RGB, resize=dict(RGB['resize'], backend='pillow'))),
    'DETRResize': (pipeline(dict(RESIZE, type='DETRResize', backend='pillow')), dict(
        RGB, resize=dict(RGB['resize'], type='DETRResize', backend='pillow'))),
    'DETRResize to one size': (
        pipeline(dict(RESIZE, type='DETRResize', keep_ratio=False)),
        dict(RGB, resize=dict(RGB['resize'], type='DETRResize', keep_ratio=False))),
    'Pad': (pipeline(RESIZE, dict(type='Pad', size_divisor=32)), None),
    'Normalize': (pipeline(RESIZE, dict(type='Normalize', mean=[9.] * 3, std=[9.] * 3)), None),
    'a step that needs more than an image': (pipeline(RESIZE, dict(type='Mosaic')), None),
    'rgb_to_bgr': (preprocessor(bgr_to_rgb=False, rgb_to_bgr=True), {}),
    'bgr': (preprocessor(bgr_to_rgb=False), dict(channels='BGR')),
    'no mean': (preprocessor(mean=None, std=None), dict(mean=[0] * 3, std=[1] * 3)),
    'pad_size_divisor': (preprocessor(pad_size_divisor=48), None),
    'one channel': ({
        'test_dataloader.dataset.pipeline.0.color_type': 'grayscale',
        'model.backbone.in_channels': 1, **preprocessor(
            mean=[127.], std=[64.], bgr_to_rgb=False)}, None),
}


@pytest.mark.parametrize('row', EXPORTS)
def test_the_file_describes_the_preprocessing_or_is_not_written(row, tmp_path, monkeypatch,
                                                                capsys):
    changes, expected = EXPORTS[row]
    config = tiny_config(write_tiny_coco(tmp_path / 'coco'), **MODEL)
    config.merge_from_dict(changes)
    config.dump(tmp_path / 'config.py')
    monkeypatch.setattr(export, 'load_weights', lambda *args: None)
    monkeypatch.setattr(export, 'read_checkpoint', lambda path: {})
    (tmp_path / 'weights.pth').touch()
    written = {}

    def export_onnx(detector, path: Path, metadata: dict, opset: int) -> dict:
        path.touch()
        written.update(json.loads(json.dumps(metadata)))
        return dict(pixels=0, score=0, swapped=0)

    monkeypatch.setattr(export, 'export_onnx', export_onnx)
    out = tmp_path / 'out.onnx'
    status = run_tool('export_onnx', tmp_path / 'config.py', tmp_path / 'weights.pth', out)
    if expected is None:
        error = capsys.readouterr().err.splitlines()[-1]
        assert status == 2 and not out.exists()
        assert 'error: test_dataloader.dataset.pipeline' in error and 'the export' in error
    else:
        assert status == 0 and written.items() >= expected.items()
        assert row != 'rgb_to_bgr' or written['channels'] == 'RGB', 'mmcv loads BGR'


def two_stage_files(folder: Path) -> Files:
    """A detector that needs as many feature points in an image as it has queries."""
    files = write_detector(folder, **MODEL)
    config = Config.fromfile(files.config)
    model = family_config('two_stage', 3, num_queries=12)
    model['bbox_head']['num_classes'] = len(CLASSES)
    config.model = dict(model, data_preprocessor=config.model.data_preprocessor)
    config.test_dataloader.dataset.pipeline[1] = dict(type='Resize', scale_factor=1.)
    config.dump(files.config)
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=build(model).state_dict()), files.checkpoint)
    return files


@pytest.mark.parametrize('row, batch_size', [
    ('more than 2^30 pixels', 1), ('fewer points than queries', 1), ('fails in a batch', 3)])
def test_an_image_that_fails_leaves_the_others(row, batch_size, files, tmp_path, monkeypatch,
                                               capsys):
    bad = tmp_path / 'in/b.png'
    bad.parent.mkdir()
    if row == 'more than 2^30 pixels':
        Image.new('1', (2**15 + 1, 2**15)).save(bad)
    else:
        cv2.imwrite(str(bad), np.zeros((16, 16, 3), np.uint8))
    if row == 'fewer points than queries':
        files = two_stage_files(tmp_path / 'model')
    if row == 'fails in a batch':
        forward = Inferencer.forward
        monkeypatch.setattr(Inferencer, 'forward', lambda self, data: 1 / 0 if any(
            x.ori_shape == (16, 16) for x in data['data_samples']) else forward(self, data))
    for name in 'ac':
        shutil.copy(files.data / 'images/val_0.jpg', tmp_path / f'in/{name}.jpg')
    status = run_tool('predict', tmp_path / 'in', files.config, files.checkpoint, '--out',
                      tmp_path / 'out', '--score-thr', 0, '--batch-size', batch_size)
    results = json.loads((tmp_path / 'out/results.json').read_text())
    assert status == 1 and {x['file_name'] for x in results} == {'a.jpg', 'c.jpg'}
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith('skipped')]
    assert len(errors) == 1 and errors[0].startswith(f'skipped {bad}: ')


def test_a_report_by_another_metric_than_that_of_coco(tmp_path, capsys):
    cfg = tiny_config(write_tiny_coco(tmp_path / 'coco'), **MODEL)
    cfg.val_evaluator = cfg.test_evaluator = dict(
        type='VOCMetric', metric='mAP', eval_mode='area')
    tiny_runner(cfg, tmp_path / 'work').train()
    assert run_tool('report', tmp_path / 'work') == 0
    page = (tmp_path / 'work/report.html').read_text()
    assert '<th>final pascal_voc/mAP</th>' in page and 'joint self-attention' in page
    assert run_tool('plot_runs', tmp_path / 'work', '--out', tmp_path / 'runs.png') == 0
    assert 'pascal' in capsys.readouterr().out
