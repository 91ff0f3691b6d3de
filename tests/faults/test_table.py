"""The table of faults can be run, and what it counts is kept."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_fault_is_tried_and_counted(tmp_path):
    root, counts = Path(__file__).parents[2], tmp_path / 'counts.json'
    said = subprocess.run(
        [sys.executable, '-m', 'tests.faults', '--only', 'in use', '--json', counts],
        capture_output=True, text=True, cwd=root, env=dict(os.environ, PYTHONPATH=str(root)))
    assert said.returncode == 0, said.stderr
    assert '1/1 system/in use: clear sentence' in said.stdout
    end, as_expected, sentence = json.loads(counts.read_text())['system/in use']
    assert end == 'clear sentence' and as_expected and 'another training' in sentence
