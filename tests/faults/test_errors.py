"""How a command ends: in one line, or with the traceback."""
import errno
import os
import socket
import subprocess
import sys

import pytest
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import MODELS, TRANSFORMS
from running import run_tool
from tiny import tiny_config

from groupdetr_mmdet.commands.errors import FIRST_ERROR, TRACEBACK, end_in_one_line, one_line
from groupdetr_mmdet.errors import ConfigError


def caught(command):
    try:
        command()
    except BaseException as error:
        return error
    raise AssertionError('nothing was raised')


def raising(error):
    def command():
        raise error

    return command


def worker_error():
    raise ConfigError('Caught ConfigError in DataLoader worker process 0.\nTraceback ...\n'
                      'groupdetr_mmdet.errors.ConfigError: a.jpg is broken; remove it.')


LINES = {
    'config': (raising(ConfigError('a is wrong; set b.')), 'a is wrong; set b.'),
    'worker': (worker_error, 'a.jpg is broken; remove it.'),
    'loss': (raising(FloatingPointError('NaN in the loss; lower lr.')), 'NaN in the loss'),
    'disk': (raising(OSError(errno.ENOSPC, 'No space left on device')), 'No space left on device'),
    'quota': (raising(OSError(errno.EDQUOT, 'Disk quota exceeded', 'a.pth')), "'a.pth': free"),
    'port': (raising(RuntimeError('The server socket failed to listen: EADDRINUSE')), 'PORT'),
    'memory': (raising(torch.cuda.OutOfMemoryError('CUDA out of memory. Tried ...')), 'num_cp'),
    'loader': (raising(RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed.')),
               'num_workers'),
    'package': (raising(ModuleNotFoundError("No module named 'wandb'", name='wandb')),
                "'wandb': install it"),
    'path': (lambda: os.listdir('/proc/nowhere'), None),  # in code of the user's, as this file is
    'path of a library': (lambda: os.makedirs('/proc/nowhere'), '/proc/nowhere'),
    'unknown key': (lambda: MODELS.build(dict(type='FocalLoss', gama=2)), 'name is gamma'),
    'unknown type': (lambda: MODELS.build(dict(type='FocalLos')), 'name is FocalLoss'),
    'bad value': (lambda: MODELS.build(dict(type='ResNet', depth=7)), 'invalid depth 7'),
    'after building': (lambda: torch.nn.Linear(2, 3)(torch.zeros(4)), None),
    'a bug': (raising(KeyError('x')), None),
}


@pytest.mark.parametrize('name', LINES)
def test_an_error_is_one_line_or_keeps_its_traceback(name):
    command, words = LINES[name]
    line = one_line(caught(command))
    assert line is None if words is None else words in line and '\n' not in line


@TRANSFORMS.register_module()
class FailingTransform(BaseTransform):
    """A user's own code with an error in it."""

    def transform(self, results):
        return results['nothing']


@pytest.mark.parametrize('num_workers', [0, 1])
def test_the_users_own_code_keeps_its_traceback(tiny_coco, tmp_path, capfd, num_workers):
    cfg = tiny_config(tiny_coco)
    cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='FailingTransform'))
    cfg.train_dataloader.num_workers = num_workers
    cfg.dump(tmp_path / 'mine.py')
    with pytest.raises(KeyError):
        run_tool('train', tmp_path / 'mine.py', '--work-dir', tmp_path / 'work')


def test_after_the_first_step_an_error_of_a_library_keeps_its_traceback(
        tiny_config_file, tmp_path):
    with pytest.raises(KeyError, match='foo'):
        run_tool('train', tiny_config_file, '--work-dir', tmp_path / 'work', '--cfg-options',
                 'val_evaluator.metric_items=[foo]')


def test_the_log_has_the_traceback(tiny_config_file, tmp_path, last_error):
    last_error('train', tiny_config_file, '--work-dir', tmp_path / 'work', '--cfg-options',
               'model.neck.in_channels=[7]')
    log, = tmp_path.glob('work/*/*.log')
    assert 'Traceback' in log.read_text()


def test_of_several_processes_one_tells_and_its_traceback_on_request(tmp_path, monkeypatch,
                                                                     capsys):
    monkeypatch.setenv(FIRST_ERROR, str(tmp_path / 'reported'))
    for rank in '10':
        monkeypatch.setenv('RANK', rank)
        with pytest.raises(SystemExit, match='2'):
            end_in_one_line(raising(ConfigError('a is wrong; set b.')))
    assert capsys.readouterr().err == 'error: a is wrong; set b.\n'
    monkeypatch.setenv(TRACEBACK, '1')
    with pytest.raises(SystemExit, match='2'):
        end_in_one_line(raising(ConfigError('a is wrong; set b.')))
    assert 'Traceback' in capsys.readouterr().err


@pytest.mark.parametrize(('error', 'status'), [(KeyboardInterrupt(), 130),
                                               (BrokenPipeError(), 141)])
def test_ctrl_c_and_an_output_that_nobody_reads_end_without_a_traceback(capsys, error, status):
    with pytest.raises(SystemExit, match=str(status)):
        end_in_one_line(raising(error))
    assert 'Traceback' not in capsys.readouterr().err


def test_a_full_disk_ends_a_training_in_one_line(tiny_config_file, tmp_path, capfd, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    assert run_tool('train', tiny_config_file, '--work-dir', tmp_path / 'work') == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith('error: ') and 'No space left' in last
    assert not list((tmp_path / 'work').glob('*.pth*'))


def test_a_port_in_use_is_told_by_the_launcher():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        port = server.getsockname()[1]
        result = subprocess.run(
            [sys.executable, '-m', 'groupdetr_mmdet.commands.torchrun', '--nproc_per_node=1',
             '--master_addr=127.0.0.1', f'--master_port={port}', 'nothing.py'],
            capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=os.getcwd()))
    assert result.returncode == 2 and 'Traceback' not in result.stderr
    assert 'set PORT' in result.stderr.splitlines()[-1]
