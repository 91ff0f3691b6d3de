"""The pictures of the benchmark show what was measured, with units."""
import json
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import pytest

from benchmarks import report


def write_record(path: Path, groups: tuple = (4, 1), memory: float = 1.) -> Path:
    cases = [dict(part='step', mode=mode, name=mode, num_groups=k, num_queries=300, num_objects=7,
                  seconds=k * seconds, peak_memory=memory and memory * k)
             for k in groups for mode, seconds in dict(plain=2., ours=1.).items()]
    path.write_text(json.dumps(dict(machine=dict(cpu='a CPU'), cases=cases,
                                    shapes=dict(batch_size=2, image_size=[800, 1066]))))
    return path


@pytest.mark.parametrize('memory', [1., None])
def test_costs_are_drawn_against_k(tmp_path, monkeypatch, memory):
    closed, file = [], write_record(tmp_path / 'b.json', memory=memory)
    monkeypatch.setattr(plt, 'close', closed.append)
    monkeypatch.setattr('sys.argv', ['x', str(file), '--out', str(tmp_path / 'made/costs.png')])
    report.main()
    assert cv2.imread(str(tmp_path / 'made/costs.png')).std() > 10
    time, *others = closed[0].axes
    assert {line.get_label(): line.get_xydata().tolist() for line in time.lines} == dict(
        plain=[[1, 2], [4, 8]], ours=[[1, 1], [4, 4]])
    assert not memory or others[0].lines[0].get_ydata().tolist() == [1, 4]
