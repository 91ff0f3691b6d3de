"""The scripts that measure turns and a GPU run whole, on tiny models and a CPU."""
import json

import torch
from family_builders import family_config
from mmengine.config import Config

from benchmarks import gpu_table, turns
from benchmarks.cases import Case


def tiny(name: str = '') -> Config:
    model = dict(family_config('dino', width=256),
                 data_preprocessor=dict(type='DetDataPreprocessor'))
    optim = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4))
    return Config(dict(model=model, optim_wrapper=optim, default_scope='mmdet'))


def test_turns_compare_time_and_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(turns, 'load_config', tiny)
    monkeypatch.setattr(turns, 'FAMILIES', dict(
        dino=('', tiny().model.neck.in_channels, (64, 96))))
    monkeypatch.setattr('sys.argv', ['turns', '--families', 'dino', '--rounds', '1', '--device',
                                     'cpu', '--out', str(tmp_path)])
    turns.main()
    record = json.loads((tmp_path / 'dino.json').read_text())
    peak = {x['mode']: x['peak_memory'] for x in record['cases']}
    assert peak['turns'] < peak['ours']
    assert [x['value'] for x in record['reach']][:2] == [
        peak['turns'] / peak['stock'], peak['ours'] / peak['stock']]


def test_the_bounds_are_of_what_is_measured():
    for family in turns.FAMILIES:
        cases, rows = turns.plan(family, 300)
        assert {x for row in rows for x in (row.case, row.other)} == set(cases)


def test_a_row_of_the_gpu_table(monkeypatch):
    job = gpu_table.DINO, Case('step', 'turns', 'bf16', 3, 6), 2
    row = gpu_table.table_row(job, tiny(), (64, 96), torch.device('cpu'), 1)
    assert row[:4] == (gpu_table.DINO, 2, 'turns:bf16', 3) and min(map(float, row[4:])) > 0
    monkeypatch.setattr(gpu_table, 'measure', lambda *args: 1 / 0)
    monkeypatch.setattr(torch.cuda, 'OutOfMemoryError', ZeroDivisionError)
    row = gpu_table.table_row(job, tiny(), (64, 96), torch.device('cpu'), 1)
    assert row[4:] == ('out of memory', ) * 3
    jobs = list(gpu_table.make_jobs(11, [2, 8]))
    assert len(jobs) == len(set(jobs)) == 16 + 2 + 6
