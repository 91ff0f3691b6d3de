"""The command that measures how far a detector is from its other forms."""
import sys

import pytest
from family_builders import family_config
from mmengine.config import Config

import benchmarks.exports as command
from groupdetr_mmdet.commands.cli import end_in_one_line


def run(monkeypatch, *configs) -> None:
    monkeypatch.setattr(sys, 'argv', ['exports', *map(str, configs)])
    end_in_one_line(command.main)


def write_config(path, model):
    Config(dict(model=model, default_scope='mmdet')).dump(path)
    return path


@pytest.fixture
def config(tmp_path):
    pytest.importorskip('onnxruntime')
    return write_config(tmp_path / 'mine.py', family_config('deformable', 3))


def cells(out: str, name: str) -> list:
    row, = (line for line in out.splitlines() if f'| {name} |' in line)
    return [cell.strip() for cell in row.split('|')[2:-1]]


@pytest.mark.slow
def test_every_form_of_a_detector_is_near(config, monkeypatch, capsys):
    run(monkeypatch, config)
    found = cells(capsys.readouterr().out, 'mine')
    assert len(found) == 4
    for cell in found[:3] if found[3] == '-' else found:
        pixels, score = map(float, cell.split(','))
        assert pixels < 1e-2 and score < 1e-5
