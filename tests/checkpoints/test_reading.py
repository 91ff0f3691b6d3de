"""Whatever names a checkpoint, its file is read whole, and none of its code runs."""
import argparse
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint

from groupdetr_mmdet.checkpoints import reading
from groupdetr_mmdet.checkpoints.reading import read_checkpoint
from groupdetr_mmdet.errors import ConfigError


def save(checkpoint, path: Path, **kwargs) -> Path:
    torch.save(checkpoint, path, **kwargs)
    return path


class Payload:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path), )


@pytest.fixture(params=[True, False], ids=['torch 2.6 or later', 'before'])
def any_torch(request, monkeypatch):
    """The way of newer and that of older versions of PyTorch."""
    monkeypatch.setattr(reading, 'READS_SAFELY', request.param)


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('remote', [False, True], ids=['path', 'http'])
@pytest.mark.usefixtures('any_torch')
def test_a_file_that_wants_to_run_code_is_refused_by_name(remote, legacy, tmp_path, server):
    marker = tmp_path / 'run'
    save(dict(state_dict={}, evil=Payload(marker)), tmp_path / 'evil.pth',
         _use_new_zipfile_serialization=not legacy)
    src = f'{server}/evil.pth' if remote else str(tmp_path / 'evil.pth')
    with pytest.raises(ConfigError, match=rf'{os.mkdir.__module__}\.mkdir.*--trust-pickle'):
        read_checkpoint(src)
    assert not marker.exists()
    read_checkpoint(src, trust_pickle=True)
    assert marker.exists()


@pytest.mark.usefixtures('any_torch')
@pytest.mark.parametrize('name, owner', [
    ('__init__', HistoryBuffer), ('__subclasses__', HistoryBuffer), ('tofile', np.ndarray)])
def test_an_attribute_that_could_run_code_is_refused(name, owner, tmp_path):

    class Reaching:
        def __reduce__(self):
            return getattr, (owner, name)

    with pytest.raises(ConfigError, match='could run any code'):
        read_checkpoint(save(dict(x=Reaching()), tmp_path / 'x.pth'))


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.usefixtures('any_torch')
def test_plain_classes_are_read(legacy, tmp_path):
    values = dict(
        args=argparse.Namespace(lr=0.1), log=HistoryBuffer([1.], [2]), names={'a', 'b'},
        numbers=[np.float32(1), np.float64(2), np.int64(3), np.int32(4), np.bool_(True),
                 np.float16(5), np.str_('x'), np.complex64(1j), np.datetime64('2020-01-01')],
        tensors=[torch.ones(2), torch.ones(2, dtype=torch.bfloat16), torch.tensor(True)],
        parameter=torch.nn.Parameter(torch.ones(1)), dtype=torch.float16, size=torch.Size([3]))
    path = save(values, tmp_path / 'x.pth', _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(path)
    for key in ('args', 'names', 'numbers', 'parameter', 'dtype', 'size'):
        assert read[key] == values[key], key
    assert read['log'].current() == 1 and read['log'].statistics('mean', 1) == .5
    assert all(torch.equal(a, b) for a, b in zip(read['tensors'], values['tensors']))


@pytest.mark.parametrize('core', ['core', '_core'])
@pytest.mark.usefixtures('any_torch')
def test_numbers_of_both_versions_of_numpy_are_read(core, tmp_path):
    """Their module has another name in version 2."""
    path = save(dict(best=np.float32(.5), last=np.int64(1)), tmp_path / 'x.pth',
                _use_new_zipfile_serialization=False)
    pickled, count = re.subn(rb'numpy\._?core\.', f'numpy.{core}.'.encode(), path.read_bytes())
    path.write_bytes(pickled)
    assert count and read_checkpoint(path) == dict(best=.5, last=1)


def test_what_one_file_needs_is_not_allowed_elsewhere(tmp_path):
    path = save(argparse.Namespace(lr=.1), tmp_path / 'x.pth')
    read_checkpoint(path)
    if reading.READS_SAFELY:
        with pytest.raises(pickle.UnpicklingError, match='Namespace'):
            torch.load(path)


DAMAGES = {  # by bytes
    'cut': lambda data: data[:len(data) // 2],
    'empty': lambda data: b'',
    'a flipped bit': lambda data: data[:len(data) // 2] + bytes(
        [data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1:],
    'HTML': lambda data: b'<html>not found</html>',
    'text': lambda data: b'hello world',
    'a pickle': lambda data: pickle.dumps({'model': 1}),
}


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('remote', [False, True], ids=['path', 'http'])
@pytest.mark.usefixtures('any_torch')
def test_a_damaged_file_gets_a_sentence(damage, remote, tmp_path, server):
    path = save(dict(state_dict=dict(x=torch.arange(1000.))), tmp_path / 'x.pth')
    data = path.read_bytes()
    path.write_bytes(DAMAGES[damage](data))
    src = f'{server}/x.pth' if remote else str(path)
    with pytest.raises(ConfigError, match='x.pth.*cannot be read as a checkpoint') as error:
        read_checkpoint(src)
    assert '\n' not in str(error.value)
    path.write_bytes(data)
    assert len(read_checkpoint(src)['state_dict']['x']) == 1000  # and it is fetched again


def test_a_program_is_no_checkpoint(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(tmp_path / 'program.pth'))
    with pytest.raises(ConfigError, match='cannot be read as a checkpoint .*TorchScript'):
        read_checkpoint(tmp_path / 'program.pth')


def test_an_address_that_cannot_be_fetched_says_what_to_do(server):
    for address in (f'{server}/missing.pth', 'http://127.0.0.1:1/x.pth'):
        with pytest.raises(ConfigError, match=f'{address} cannot be fetched.* put the file at /'):
            read_checkpoint(address)


@pytest.mark.parametrize('name', ['torchvision://nothing', 'openmmlab://nothing',
                                  'mmcls://nothing'])
def test_a_name_that_mmengine_does_not_know(name):
    with pytest.raises(ConfigError, match=f'{name}'):
        read_checkpoint(name)


def test_weights_of_mmcls_are_those_of_the_backbone(tmp_path, server, monkeypatch):
    save(dict(state_dict={'backbone.conv.weight': torch.ones(1), 'head.fc.weight': torch.ones(1)}),
         tmp_path / 'x.pth')
    monkeypatch.setattr(checkpoint, 'get_mmcls_models', lambda: dict(x=f'{server}/x.pth'))
    assert set(read_checkpoint('mmcls://x')['state_dict']) == {'conv.weight'}
