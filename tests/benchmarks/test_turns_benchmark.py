"""The script that measures turns runs whole, on a tiny model and a CPU."""
import json

from family_builders import family_config
from mmengine.config import Config

from benchmarks import turns


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
