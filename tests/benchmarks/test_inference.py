"""The benchmark of inference gives every runtime the same detector and images."""
import json
import sys

import pytest
import torch
from builders import detector_config
from family_builders import family_config
from mmengine.config import Config

import benchmarks.inference as command
from benchmarks.inference import Variant, build_models, make_runs, summarize
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.deploy import export

SIZE = ['--image-size', '64', '96', '--rounds', '2', '--warmup', '1']


def write_config(path, model) -> str:
    model = dict(model, data_preprocessor=dict(type='DetDataPreprocessor'))
    Config(dict(model=model, default_scope='mmdet')).dump(path)
    return str(path)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command and return its status, and what it prints."""

    def run_command(*argv) -> tuple:
        monkeypatch.setattr(sys, 'argv', ['inference', *map(str, argv)])
        try:
            end_in_one_line(command.main)
            status = 0
        except SystemExit as end:
            status = end.code
        return status, ''.join(capsys.readouterr())

    return run_command


def test_all_runtimes_find_the_same(tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('openvino')
    config = write_config(tmp_path / 'config.py', family_config('refine', 3))
    monkeypatch.setattr(sys, 'argv', ['x', config, *SIZE, '--batch-sizes', '2', '--runtimes',
                                      'pytorch', 'onnxruntime', 'openvino'])
    args = command.parse_args()
    models = build_models(args)
    assert type(models['stock']).__name__ == 'DeformableDETR'
    for model in models.values():
        assert not model.training
    with torch.no_grad():
        scores = []
        for variant, detect in make_runs(args, models, str(tmp_path)).items():
            found = detect()
            scores.append(torch.stack([x.scores for x in found])
                          if variant.runtime == 'pytorch' else torch.from_numpy(found[1]))
    assert len(scores) == 6 and scores[0].shape == (2, 20)
    for other in scores[1:]:
        torch.testing.assert_close(other, scores[0], atol=1e-5, rtol=0)


def test_the_command_measures_checkpoints(tmp_path, run):
    config = write_config(tmp_path / 'config.py', detector_config(width=256, num_heads=8))
    status, said = run(config, *SIZE, '--batch-sizes', 1, 2, '--runtimes', 'pytorch', '--json',
                       tmp_path / 'out.json')
    assert status == 0 and 'time / stock' in said
    record = json.loads((tmp_path / 'out.json').read_text())
    assert [(x['model'], x['batch_size']) for x in record['cases']] == [
        ('stock', 1), ('ours', 1), ('stock', 2), ('ours', 2)]
    for case in record['cases']:
        assert len(case['seconds']) == 2 and case['latency_ms'] > 0
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), tmp_path / 'other.pth')
    status, said = run(config, tmp_path / 'other.pth', *SIZE, '--runtimes', 'pytorch')
    assert status == 2 and 'other.pth' in said


def test_a_runtime_that_is_not_installed_gets_a_sentence(tmp_path, run, monkeypatch):
    pytest.importorskip('onnxruntime')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    monkeypatch.setattr(export, 'openvino_core', export.openvino_core.__wrapped__)
    config = write_config(tmp_path / 'config.py', family_config('deformable', 3))
    status, said = run(config, *SIZE, '--runtimes', 'openvino')
    assert status == 2 and '--runtimes openvino: the package openvino is not installed' in said


def test_medians_are_of_rounds():
    records = summarize({Variant('pytorch', 'stock', 4): [1., 2., 4.],
                         Variant('pytorch', 'ours', 4): [2., 2., 2.]})
    assert [x['latency_ms'] for x in records] == [2000, 2000]
    assert [x['images_per_second'] for x in records] == [2, 2]
    assert [x['time_to_stock'] for x in records] == [1, 1]
