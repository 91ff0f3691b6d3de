"""From a training to three ways to run its detector, which find the same objects."""
import json
import re
from pathlib import Path

import cv2
import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from running import run_tool
from tiny import CLASSES, tiny_config, write_tiny_coco

from groupdetr_mmdet.deploy.export import Detections, largest_differences

MODEL = dict(width=256, num_heads=8, num_queries=10, dec_layers=2)
GROUP = 2
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


def to_detections(results: list) -> Detections:
    boxes = torch.tensor([result['bbox'] for result in results])
    boxes[:, 2:] += boxes[:, :2]
    return Detections(boxes, torch.tensor([result['score'] for result in results]),
                      torch.tensor([result['category_id'] - 1 for result in results]))


def run_onnx(path: Path, images: dict) -> dict:
    """Detections in each image by onnxruntime, with nothing but the file's own description."""
    onnxruntime = pytest.importorskip('onnxruntime')
    session = onnxruntime.InferenceSession(str(path))
    said = session.get_modelmeta().custom_metadata_map
    scale, mean, std = json.loads(said['resize'])['scale'], json.loads(said['mean']), \
        json.loads(said['std'])
    resized = [mmcv.imrescale(image, tuple(scale)) for image in images.values()]
    sizes = np.array([image.shape[:2] for image in resized])
    batch = np.zeros((len(resized), 3, *sizes.max(0)), np.float32)
    for target, image in zip(batch, resized):
        pixels = image[..., ::-1] if said['channels'] == 'RGB' else image
        target[:, :image.shape[0], :image.shape[1]] = ((pixels - mean) / std).transpose(2, 0, 1)
    outputs = session.run(None, dict(images=batch, image_sizes=sizes))
    found = {}
    for i, (name, image) in enumerate(images.items()):
        detections = Detections(*(torch.from_numpy(output[i]) for output in outputs))
        back = torch.tensor(np.array(image.shape[:2]) / sizes[i]).flip(0).repeat(2).float()
        found[name] = detections._replace(boxes=detections.boxes * back)
    return found


def test_training_to_stock_detector_and_onnx(folder, onnx_file):
    trained = folder / 'epoch_2.pth'
    assert run_tool('convert_checkpoint', folder / 'ours.py', trained, folder / 'stock.pth',
                    '--to', 'mmdet', '--query-group', GROUP, '--publish') == 0
    published, = folder.glob('stock-*.pth')
    ours = predict(folder, 'ours', trained.name, GROUP)
    stock = predict(folder, 'stock', published.name, GROUP)
    images = {name: cv2.imread(str(folder / f'images/{name}.png')) for name in SHAPES}
    exported = run_onnx(onnx_file, images)
    other = predict(folder, 'ours', trained.name, group=0)
    for name, shape in SHAPES.items():
        assert len(ours[name].scores) == 30
        for found in (stock[name], exported[name]):
            differences = largest_differences(found, ours[name], max(shape))
            assert differences['pixels'] < 0.01 and differences['score'] < 1e-5
        assert (other[name].scores - ours[name].scores).abs().max() > 1e-5


def test_an_output_that_lies_under_a_file_is_refused_before_the_work(folder, capsys):
    file = folder / 'ours.py'
    assert run_tool('convert_checkpoint', file, folder / 'epoch_2.pth', file / 'o.pth') == 2
    said = capsys.readouterr()
    assert f'OUT {file / "o.pth"} cannot be written, because {file} is no' in said.err
    assert 'Tensors' not in said.out


def test_the_python_of_the_guide_runs(folder, onnx_file, capsys, monkeypatch):
    """And both snippets find the same best object."""
    monkeypatch.chdir(folder)
    root = Path(__file__).parents[2]
    guide = (root / 'README.md').read_text().partition('## Detect')[2]
    guide += (root / 'docs/checkpoints.md').read_text()
    inferencer, onnx = re.findall(r'```python\n(.*?)```', guide, re.DOTALL)
    config = Config.fromfile('ours.py')
    config.model.test_cfg.query_group = GROUP
    config.dump('guide.py')
    files = {'configs/group_cond_detr_r50_12e.py': 'guide.py', 'epoch_12.pth': 'epoch_2.pth',
             'photo.jpg': 'images/a.png', 'detector.onnx': 'ours.onnx'}
    for old, new in files.items():
        inferencer, onnx = inferencer.replace(old, new), onnx.replace(old, new)
    results = {}
    exec(inferencer, results)
    best = results['result']['predictions'][0]
    assert (folder / 'out/vis/a.png').exists()
    capsys.readouterr()
    exec(onnx, {})
    printed = capsys.readouterr().out
    assert any(name in printed for name in CLASSES)
    numbers = [float(x) for x in re.findall(r'[\d.]+(?:e-?\d+)?', printed)]
    assert numbers[:4] == pytest.approx(best['bboxes'][0], abs=0.5)
    assert numbers[4] == pytest.approx(best['scores'][0], abs=1e-4)


def test_the_trained_detector_starts_another_training(folder):
    """K = 3 becomes K = 5, and its loss is finite and falls."""
    assert run_tool('convert_checkpoint', folder / 'ours.py', folder / 'epoch_2.pth',
                    folder / 'five.pth', '--cfg-options', 'model.num_query_groups=5') == 0
    config = Config.fromfile(folder / 'ours.py')
    config.model.num_query_groups = 5
    config.load_from = str(folder / 'five.pth')
    config.train_cfg.max_epochs = 1
    config.dump(folder / 'five.py')
    assert run_tool('train', folder / 'five.py', '--work-dir', folder / 'five') == 0
    rows = torch.load(folder / 'five/epoch_1.pth')['state_dict']['query_embedding.weight']
    groups = rows.view(5, 10, 256)
    assert torch.isfinite(rows).all()
    assert not torch.allclose(groups[3], groups[0], atol=1e-3)
