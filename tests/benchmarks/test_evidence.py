"""The trainings behind docs/choose-k.md, with a handful of images."""
import functools
import json
from pathlib import Path

import pytest
from mmdet.visualization import DetLocalVisualizer

from benchmarks import evidence, evidence_report
from benchmarks.evidence import SHAPES, Training
from groupdetr_mmdet.data.shapes import make_shapes

DOCS = evidence_report.DOCS
TRAININGS = {
    'by-k': [Training('by-k', 'K = 2', 0, 2, 1), Training('by-k', 'K = 6', 0, 6, 1)],
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a study in this process; returns what is in the file of results."""
    def train(*args) -> dict:
        DetLocalVisualizer._instance_dict.clear()  # or it writes where the last training did
        return evidence.train(*args)

    monkeypatch.setattr(evidence, 'run_alone', train)
    monkeypatch.setattr(evidence, 'make_shapes',
                        functools.partial(make_shapes, num_train=16, num_val=4, size=64))

    def run(study: str) -> dict:
        monkeypatch.setattr(evidence, 'make_studies', lambda results: TRAININGS)
        monkeypatch.setattr('sys.argv', [
            'evidence', '--shapes', str(tmp_path / 'shapes'), '--studies', study,
            '--work-dir', str(tmp_path / 'work'), '--results', str(tmp_path / 'results.json')])
        evidence.main()
        return json.loads((tmp_path / 'results.json').read_text())

    return run


@pytest.mark.slow
def test_results_are_kept_and_not_trained_again(run, monkeypatch):
    first = run('by-k')
    assert list(first) == ['by-k/K = 2/0', 'by-k/K = 6/0']
    for result in first.values():
        assert [point[0] for point in result['curve']] == [1] and result['steps_per_epoch'] == 2
        assert result['seconds_per_step'] > 0
    monkeypatch.setattr(evidence, 'run_alone', None)
    assert run('by-k') == first


def test_equal_time_follows_the_measured_cost():
    assert not evidence.make_studies({})['equal-time']
    results = {run.name: dict(seconds_per_step=1 + run.num_groups)
               for run in evidence.make_studies({})['by-k']}
    epochs = {run.num_groups: run.epochs for run in evidence.make_studies(results)['equal-time']}
    assert epochs == {1: evidence.EPOCHS[SHAPES] * 7 / 2, 3: evidence.EPOCHS[SHAPES] * 7 / 4,
                      11: round(evidence.EPOCHS[SHAPES] * 7 / 12)}


def test_the_documentation_says_what_was_measured():
    page = (DOCS / evidence_report.PAGE).read_text()
    assert evidence_report.fill_page(page, evidence_report.read_curves(evidence.RESULTS)) == page
