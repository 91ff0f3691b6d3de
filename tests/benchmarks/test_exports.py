"""The command that measures how far the runtimes are from PyTorch."""
import sys

import pytest
from family_builders import family_config
from mmengine.config import Config

import benchmarks.exports as command
from groupdetr_mmdet.commands.cli import end_mistakes
from groupdetr_mmdet.deploy import export


def run(monkeypatch, *configs) -> None:
    monkeypatch.setattr(sys, 'argv', ['exports', *map(str, configs)])
    end_mistakes(command.main)


@pytest.fixture
def config(tmp_path):
    pytest.importorskip('onnxruntime')
    Config(dict(model=family_config('deformable', 3), default_scope='mmdet')).dump(
        tmp_path / 'mine.py')
    return tmp_path / 'mine.py'


def test_a_row_for_every_runtime(config, monkeypatch, capsys):
    run(monkeypatch, config)
    rows = [line for line in capsys.readouterr().out.splitlines() if 'mine' in line]
    assert ['onnxruntime' in row for row in rows] == [True, False][:len(rows)]
    for row in rows:
        pixels, score = (float(x) for x in row.strip('│ ').split('│')[-2:])
        assert 0 <= pixels < 1e-2 and 0 <= score < 1e-5


def test_a_file_that_detects_something_else_fails(config, monkeypatch, capsys):
    monkeypatch.setattr(export, 'SCORE_TOLERANCE', -1)
    with pytest.raises(SystemExit):
        run(monkeypatch, config)
    assert 'mine.py: The ONNX model does not find' in capsys.readouterr().err
