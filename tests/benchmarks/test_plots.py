"""The pictures of the benchmark show what was measured, and say their units."""
import json
from pathlib import Path
from typing import List, Optional, Sequence

import cv2
import matplotlib.pyplot as plt
import pytest
from running import run_tool

from benchmarks import plots
from benchmarks.plots import draw_costs


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> List[plt.Figure]:
    """All figures that are closed, to look at what they drew."""
    closed = []
    monkeypatch.setattr(plots.plt, 'close', closed.append)
    return closed


def benchmark_json(path: Path, groups: Sequence[int] = (4, 1), memory: Optional[int] = 1) -> Path:
    cases = [dict(part='step', mode=mode, name=mode, num_groups=k, num_queries=300, num_objects=7,
                  seconds=dict(total=k * seconds),
                  peak_memory=memory and memory * k * 2**20)
             for k in groups for mode, seconds in dict(plain=2., ours=1.).items()]
    path.write_text(json.dumps(dict(
        command='', machine=dict(cpu='a CPU', threads=1), cases=cases,
        shapes=dict(batch_size=2, image_size=[800, 1066]))))
    return path


def test_costs_are_drawn_against_k(tmp_path: Path, figures: list):
    draw_costs(benchmark_json(tmp_path / 'b.json'), tmp_path / 'costs.png')
    time, memory = figures[0].axes
    assert time.get_ylabel() == 'time [s]' and memory.get_ylabel() == 'peak memory [MiB]'
    assert {line.get_label(): line.get_xydata().tolist() for line in time.lines} == dict(
        plain=[[1, 2], [4, 8]], ours=[[1, 1], [4, 4]])
    assert memory.lines[0].get_ydata().tolist() == [1, 4]
    assert 'batch of 2 images of 800 x 1066, 300 queries' in figures[0].get_suptitle()


def test_costs_without_memory(tmp_path: Path, capfd: pytest.CaptureFixture):
    file = benchmark_json(tmp_path / 'b.json', memory=None)
    assert run_tool('plot_benchmark', file, '--out', tmp_path / 'made/costs.png') == 0
    assert cv2.imread(str(tmp_path / 'made/costs.png')).std() > 10
