"""The forms of a detector: every runtime gets the same detector and images."""
import sys
from argparse import Namespace

import pytest
import torch
from builders import detector_config
from family_builders import family_config
from mmengine.config import Config

from benchmarks import forms


def write_config(path, model) -> str:
    model = dict(model, data_preprocessor=dict(type='DetDataPreprocessor'))
    Config(dict(model=model, default_scope='mmdet')).dump(path)
    return str(path)


def cells(out: str, name: str) -> list:
    return [[cell.strip() for cell in line.split('|')[2:-1]]
            for line in out.splitlines() if line.startswith(f'| {name} |')]


def test_all_runtimes_find_the_same(tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('openvino')
    args = Namespace(
        config=write_config(tmp_path / 'config.py', family_config('refine', 3)), cfg_options=None,
        checkpoint=None, image_size=[64, 96], batch_sizes=[2],
        runtimes=['pytorch', 'onnxruntime', 'openvino'])
    models = forms.build_models(args)
    assert type(models['stock']).__name__ == 'DeformableDETR'
    with torch.no_grad():
        scores = []
        for (runtime, *_), detect in forms.make_runs(args, models, str(tmp_path)).items():
            found = detect()
            scores.append(torch.stack([x.scores for x in found]) if runtime == 'pytorch'
                          else torch.from_numpy(found[1]))
    assert len(scores) == 6 and scores[0].shape == (2, 20)
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], atol=1e-5, rtol=0)


def test_speed_is_measured_beside_stock(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path / 'config.py', detector_config(width=256, num_heads=8))
    monkeypatch.setattr(sys, 'argv', ['forms', 'speed', config, '--image-size', '64', '96',
                                      '--rounds', '2', '--batch-sizes', '1', '2', '--runtimes',
                                      'pytorch'])
    forms.main()
    assert [row[:2] for row in cells(capsys.readouterr().out, 'pytorch')] == [
        [str(n), name] for n in (1, 2) for name in forms.MODELS]
    assert forms.table_rows({('x', 4, 'stock'): [1., 2., 4.], ('x', 4, 'ours'): [2., 2., 2.]})[
        1] == ('x', 4, 'ours', '2000.0', '2.00', '1.000')


@pytest.mark.slow
def test_every_form_of_a_detector_is_near(tmp_path, monkeypatch, capsys):
    pytest.importorskip('onnxruntime')
    config = write_config(tmp_path / 'mine.py', family_config('deformable', 3))
    monkeypatch.setattr(sys, 'argv', ['forms', 'differences', config])
    forms.main()
    found, = cells(capsys.readouterr().out, 'mine')
    assert len(found) == 4
    for cell in found[:3] if found[3] == '-' else found:
        pixels, score = map(float, cell.split(','))
        assert pixels < 1e-2 and score < 1e-5


def test_transformers_detectors_are_near(tmp_path, monkeypatch, capsys):
    pytest.importorskip('transformers')
    model = family_config('conditional', 3)
    model['bbox_head']['num_classes'] = 80
    config = write_config(tmp_path / 'mine.py', model)
    monkeypatch.setattr(sys, 'argv', ['forms', 'transformers', config])
    forms.main()
    found, = cells(capsys.readouterr().out, 'mine')
    assert len(found) == 2
    assert max(float(x) for cell in found for x in cell.split(',')) < 1e-5
