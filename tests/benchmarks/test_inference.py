"""The benchmark of inference gives every runtime the same detector and images."""
import json
from argparse import Namespace

import pytest
import torch
from builders import detector_config
from family_builders import family_config
from mmengine.config import Config

import benchmarks.inference as command


def write_config(path, model) -> str:
    model = dict(model, data_preprocessor=dict(type='DetDataPreprocessor'))
    Config(dict(model=model, default_scope='mmdet')).dump(path)
    return str(path)


def test_all_runtimes_find_the_same(tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('openvino')
    args = Namespace(
        config=write_config(tmp_path / 'config.py', family_config('refine', 3)), cfg_options=None,
        checkpoint=None, image_size=[64, 96], batch_sizes=[2],
        runtimes=['pytorch', 'onnxruntime', 'openvino'])
    models = command.build_models(args)
    assert type(models['stock']).__name__ == 'DeformableDETR'
    with torch.no_grad():
        scores = []
        for (runtime, *_), detect in command.make_runs(args, models, str(tmp_path)).items():
            found = detect()
            scores.append(torch.stack([x.scores for x in found]) if runtime == 'pytorch'
                          else torch.from_numpy(found[1]))
    assert len(scores) == 6 and scores[0].shape == (2, 20)
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], atol=1e-5, rtol=0)


def test_the_command_measures_medians(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path / 'config.py', detector_config(width=256, num_heads=8))
    monkeypatch.setattr('sys.argv', [
        'inference', config, '--image-size', '64', '96', '--rounds', '2', '--batch-sizes', '1',
        '2', '--runtimes', 'pytorch', '--json', str(tmp_path / 'out.json')])
    command.main()
    record = json.loads((tmp_path / 'out.json').read_text())
    assert [x[:3] for x in record['rows']] == [
        ['pytorch', n, name] for n in (1, 2) for name in command.MODELS]
    assert command.table_rows({('x', 4, 'stock'): [1., 2., 4.], ('x', 4, 'ours'): [2., 2., 2.]})[
        1] == ('x', 4, 'ours', '2000.0', '2.00', '1.000')
