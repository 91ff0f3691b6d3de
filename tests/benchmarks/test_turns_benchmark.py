"""The scripts that measure turns and a GPU run whole, on tiny models and a CPU."""
import contextlib
import json

import torch
from builders import detector_config
from family_builders import family_config
from mmengine.config import Config

from benchmarks import gpu_table, turns
from benchmarks.cases import Benchmark, Case, Shapes

OPTIM = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=.1))


def tiny(family: str) -> Config:
    model = family_config(family, width=256)
    if family == 'conditional':
        model = detector_config(width=256, num_heads=8, num_queries=6)
    return Config(dict(
        model=dict(model, data_preprocessor=dict(type='DetDataPreprocessor')),
        optim_wrapper=OPTIM, default_scope='mmdet'))


class InThisProcess:
    """Spares the seconds that a process takes to start."""

    def __init__(self, cfg: Config, case: Case, shapes: Shapes) -> None:
        self.pool = contextlib.nullcontext()
        self.run = Benchmark(case, shapes, cfg, torch.device('cpu'))

    def __call__(self) -> dict:
        return self.run()


def test_turns_write_a_table_and_a_picture(monkeypatch, tmp_path):
    monkeypatch.setattr('benchmarks.suite.OwnProcess', InThisProcess)
    monkeypatch.setattr(turns, 'resnet18_config',
                        lambda family: (tiny(family), Shapes(2, (64, 96))))
    monkeypatch.setattr(turns, 'GROUPS', (1, 11, 22))
    monkeypatch.setattr('benchmarks.suite.Suite.peak_memory',
                        lambda self, case: 2**20 * case.num_groups)
    monkeypatch.setattr('sys.argv', ['turns', '--families', 'conditional', '--rounds', '1',
                                     '--device', 'cpu', '--out', str(tmp_path / 'turns')])
    turns.main()
    record = json.loads((tmp_path / 'turns' / 'conditional.json').read_text())
    assert {(x['mode'], x['num_groups']) for x in record['cases']} == {
        (mode, k) for mode in ('ours', 'turns') for k in (1, 11, 22)}
    assert [x['value'] for x in record['reach']][:2] == [11, 2]  # of the memory that is told above
    assert (tmp_path / 'turns' / 'conditional.png').exists()


def test_a_row_of_the_gpu_table(monkeypatch):
    monkeypatch.setattr('benchmarks.suite.Suite.peak_memory', lambda self, case: 2**20)
    job = gpu_table.DINO, Case('step', 'turns', 'bf16', 3, 6, 2), 2
    row = gpu_table.measure(job, tiny('dino'), (64, 96), torch.device('cpu'), 1)
    assert row['seconds'] > 0
    assert gpu_table.table_row(dict(row, seconds=.5)) == (
        gpu_table.DINO, 2, 'turns:bf16', 3, '500.0', '4.0', '1.0')
    assert gpu_table.table_row(dict(row, seconds=None))[-3] == 'out of memory'
    jobs = list(gpu_table.make_jobs(11, [2, 8]))
    assert len(jobs) == len(set(jobs)) == 16 + 2 + 6
