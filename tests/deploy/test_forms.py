"""From a training to three ways to run its detector, which find the same objects."""
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.structures import InstanceData
from running import run_tool
from tiny import CLASSES, tiny_config, write_tiny_coco

from groupdetr_mmdet.deploy.export import largest_differences

MODEL = dict(width=256, num_heads=8, num_queries=10, dec_layers=2)
GROUP = 2
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / 'examples/detect_onnx.py'
SHAPES = dict(a=(64, 48), b=(40, 64))  # (height, width)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A trained checkpoint ``epoch_2.pth``, configs of ours and of the stock detector, images."""
    folder = tmp_path_factory.mktemp('deploy')
    data = write_tiny_coco(folder / 'coco')
    for name, groups in dict(ours=3, stock=None).items():
        config = tiny_config(data, num_query_groups=groups, **MODEL)
        resize, = (step for step in config.test_dataloader.dataset.pipeline
                   if step.type == 'Resize')
        resize.scale = (96, 80)
        config.model.test_cfg.max_per_img = 30  # every class of every query
        config.dump(folder / f'{name}.py')
    image = cv2.imread(str(data / 'images/val_0.jpg'))
    (folder / 'images').mkdir()
    for name, (height, width) in SHAPES.items():
        cv2.imwrite(str(folder / f'images/{name}.png'), image[:height, :width])
    assert run_tool('train', folder / 'ours.py', '--work-dir', folder) == 0
    return folder


@pytest.fixture(scope='module')
def onnx_file(folder) -> Path:
    """The ONNX model of ``GROUP``."""
    path = folder / 'ours.onnx'
    assert run_tool('export_onnx', folder / 'ours.py', folder / 'epoch_2.pth', path,
                    '--query-group', GROUP) == 0
    return path


def predict(folder: Path, name: str, checkpoint: str, group: int) -> dict:
    """Detections in each image by ``tools/predict.py``."""
    options = ['--query-group', group] if name == 'ours' else []
    out = folder / f'predicted_{name}'
    assert run_tool('predict', folder / 'images', folder / f'{name}.py', folder / checkpoint,
                    '--out', out, '--score-thr', 0, '--batch-size', 2, *options) == 0
    results = json.loads((out / 'results.json').read_text())
    return {image: to_detections([x for x in results if x['file_name'] == f'{image}.png'])
            for image in SHAPES}


def to_detections(results: list) -> InstanceData:
    boxes = torch.tensor([result['bbox'] for result in results])
    boxes[:, 2:] += boxes[:, :2]
    return InstanceData(
        bboxes=boxes, scores=torch.tensor([result['score'] for result in results]),
        labels=torch.tensor([result['category_id'] - 1 for result in results]))


def run_example(path: Path, images: dict) -> dict:
    """Detections in each image by the example, with nothing but the file's own description."""
    detector = runpy.run_path(str(EXAMPLE))['Detector'](str(path))
    found = {}
    for name, image in images.items():
        boxes, scores, names = detector(image)
        found[name] = InstanceData(
            bboxes=torch.from_numpy(boxes).float(), scores=torch.from_numpy(scores),
            labels=torch.tensor([CLASSES.index(name) for name in names]))
    return found


def test_training_to_stock_detector_and_onnx(folder, onnx_file):
    trained = folder / 'epoch_2.pth'
    assert run_tool('convert_checkpoint', folder / 'ours.py', trained, folder / 'stock.pth',
                    '--to', 'mmdet', '--query-group', GROUP, '--publish') == 0
    published, = folder.glob('stock-*.pth')
    ours = predict(folder, 'ours', trained.name, GROUP)
    stock = predict(folder, 'stock', published.name, GROUP)
    images = {name: cv2.imread(str(folder / f'images/{name}.png')) for name in SHAPES}
    exported = run_example(onnx_file, images)
    other = predict(folder, 'ours', trained.name, group=0)
    for name, shape in SHAPES.items():
        assert len(ours[name].scores) == 30
        for found in (stock[name], exported[name]):
            differences = largest_differences(found, ours[name], max(shape))
            assert differences['pixels'] < 0.01 and differences['score'] < 1e-5
        assert (other[name].scores - ours[name].scores).abs().max() > 1e-5


# Runs a script as a machine would that has none of these packages.
WITHOUT = """
import runpy, sys
for package in ('torch', 'torchvision', 'mmdet', 'mmcv', 'mmengine', 'groupdetr_mmdet', 'onnx'):
    sys.modules[package] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_the_example_needs_no_torch(folder, onnx_file, tmp_path):
    """``BARE_PYTHON`` may name an interpreter that has nothing but what the example needs."""
    assert len(EXAMPLE.read_text().splitlines()) <= 80
    image = cv2.imread(str(folder / 'images/a.png'))
    video = cv2.VideoWriter(str(tmp_path / 'video.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5,
                            image.shape[1::-1])
    for _ in range(3):
        video.write(image)
    video.release()
    python = os.environ.get('BARE_PYTHON')
    run = [python] if python else [sys.executable, '-c', WITHOUT]
    command = [*run, EXAMPLE, onnx_file, folder / 'images/a.png', tmp_path / 'video.avi',
               '--out', tmp_path / 'out', '--score-thr', '0']
    subprocess.run(command, check=True)
    drawn = cv2.imread(str(tmp_path / 'out/a.png'))
    assert drawn.shape == image.shape and (drawn != image).any()
    frames = cv2.VideoCapture(str(tmp_path / 'out/video.mp4'))
    assert frames.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert frames.read()[1].shape == image.shape
    refused = subprocess.run([*command[:-5], folder / 'ours.py'], capture_output=True, text=True,
                             cwd=tmp_path)
    assert refused.returncode == 2 and 'ours.py is no image or video' in refused.stderr
