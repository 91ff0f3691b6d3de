"""The command that measures how far a detector is from its other forms."""
import sys

import pytest
from family_builders import family_config
from mask_builders import mask2former_config
from mmengine.config import Config

import benchmarks.exports as command
from groupdetr_mmdet.commands.cli import end_in_one_line
from groupdetr_mmdet.deploy import export


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


def test_forms_that_there_are_not(tmp_path, monkeypatch, capsys):
    """Masks are not exported, and mmdet has no DN-DETR."""
    configs = {'masks': mask2former_config(3), 'dn': family_config('dn', 3)}
    monkeypatch.setattr(command, 'compare_exports', lambda detector: dict.fromkeys(
        ('onnxruntime', 'OpenVINO'), dict(pixels=1, score=2, swapped=.013)))
    run(monkeypatch, *(write_config(tmp_path / f'{x}.py', model) for x, model in configs.items()))
    said = capsys.readouterr().out
    assert cells(said, 'masks')[2:] == ['-', '-'] and '-' not in cells(said, 'masks')[:2]
    assert cells(said, 'dn')[1:] == ['-', *2 * ['1e+00, 2e+00 (1.3% others)']]


def test_a_form_that_detects_something_else_fails(config, monkeypatch, capsys):
    for module in (export, command):
        monkeypatch.setattr(module, 'largest_differences', differ)
    with pytest.raises(SystemExit):
        run(monkeypatch, config)
    assert 'mine.py: something else' in capsys.readouterr().err


def differ(*args):
    raise RuntimeError('something else')
