"""What ends a command: mistakes and the system's refusals in a sentence, bugs with a traceback."""
import errno
import os
import socket
import subprocess
import sys

import pytest
import torch
from mmdet.registry import MODELS
from running import run_tool
from tiny import tiny_config

from groupdetr_mmdet.commands.mistakes import TOLD, TRACEBACK, end_mistakes, sentence
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.training.runner import collect_by_messages


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


SAID = {
    'config': (raising(ConfigError('a is wrong; set b.')), 'a is wrong; set b.'),
    'worker': (worker_error, 'a.jpg is broken; remove it.'),
    'loss': (raising(FloatingPointError('NaN in the loss; lower lr.')), 'NaN in the loss'),
    'disk': (raising(OSError(errno.ENOSPC, 'No space left on device')), 'No space left on device'),
    'quota': (raising(OSError(errno.EDQUOT, 'Disk quota exceeded', 'a.pth')), 'a.pth: Disk quota'),
    'read-only': (raising(OSError(errno.EROFS, 'Read-only file system', 'w')), 'w: Read-only'),
    'rights': (raising(PermissionError(errno.EACCES, 'Permission denied', 'w')), 'permissions'),
    'folder gone': (raising(FileNotFoundError(errno.ENOENT, 'No such file', 'w/a')), 'w/a: No'),
    'port': (raising(RuntimeError('The server socket failed to listen: EADDRINUSE')), 'PORT'),
    'memory': (raising(torch.cuda.OutOfMemoryError('CUDA out of memory. Tried ...')), 'num_cp'),
    'loader': (raising(RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly')),
               'num_workers'),
    'package': (raising(ModuleNotFoundError("No module named 'wandb'", name='wandb')),
                'run pip install wandb'),
    'backend': (raising(ImportError('Please run "pip install clearml" to install clearml')),
                'run pip install clearml'),
    'unknown key': (lambda: MODELS.build(dict(type='FocalLoss', gama=2)), 'name is gamma'),
    'missing key': (lambda: MODELS.build(dict(type='ChannelMapper')), 'misses'),
    'unknown type': (lambda: MODELS.build(dict(type='FocalLos')), 'FocalLos is not in the'),
    'bad value': (lambda: MODELS.build(dict(type='ResNet', depth=7)), 'ResNet cannot be built'),
}


@pytest.mark.parametrize('name', SAID)
def test_mistakes_and_refusals_are_a_sentence(name):
    command, words = SAID[name]
    said = sentence(caught(command))
    assert words in said and '\n' not in said


@pytest.mark.parametrize('error', [
    TypeError('a bug'), ValueError('a bug'), RuntimeError('shapes'), KeyError('x'),
    AssertionError(), ImportError('no', name='groupdetr_mmdet.nothing'), ConnectionResetError()])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        end_mistakes(raising(error))


def test_a_bug_of_this_package_while_a_config_is_built_keeps_its_traceback(monkeypatch):
    from builders import detector_config

    from groupdetr_mmdet import GroupConditionalDETR

    monkeypatch.setattr(GroupConditionalDETR, '_init_layers', lambda self: self.nothing)
    error = caught(lambda: MODELS.build(detector_config()))
    assert sentence(error) is None


def test_of_several_processes_one_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(TOLD, str(tmp_path / 'told'))
    for rank in '10':
        monkeypatch.setenv('RANK', rank)
        with pytest.raises(SystemExit, match='2'):
            end_mistakes(raising(ConfigError('a is wrong; set b.')))
    assert capsys.readouterr().err == 'error: a is wrong; set b.\n'


def test_a_traceback_can_be_asked_for(monkeypatch, capsys):
    monkeypatch.setenv(TRACEBACK, '1')
    with pytest.raises(SystemExit, match='2'):
        end_mistakes(raising(ConfigError('a is wrong; set b.')))
    said = capsys.readouterr().err
    assert 'Traceback' in said and said.endswith('error: a is wrong; set b.\n')


def test_processes_send_each_other_their_detections(tiny_coco):
    cfg = tiny_config(tiny_coco)
    collect_by_messages(cfg)
    assert cfg.val_evaluator.collect_device == cfg.test_evaluator.collect_device == 'gpu'


def test_ctrl_c_ends_without_a_traceback(capsys):
    with pytest.raises(SystemExit, match='130'):
        end_mistakes(raising(KeyboardInterrupt()))
    assert capsys.readouterr().err == 'interrupted\n'


@pytest.mark.parametrize('name', ['LOCAL_RANK', 'RANK', 'WORLD_SIZE'])
def test_a_rank_that_is_no_number_is_refused(tiny_config_file, tmp_path, monkeypatch, capfd, name):
    monkeypatch.setenv(name, 'abc')
    assert run_tool('train', tiny_config_file, '--work-dir', tmp_path / 'work') == 2
    assert f'error: {name}=abc in the environment must be a number' in capfd.readouterr().err
    assert not (tmp_path / 'work').exists()


def test_an_output_that_nobody_reads_ends_without_a_traceback(capsys):
    with pytest.raises(SystemExit, match='141'):
        end_mistakes(raising(BrokenPipeError()))
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize('place', ['a file', 'a folder that cannot be made'])
def test_a_work_dir_that_cannot_be_is_refused(tiny_config_file, tmp_path, capfd, place):
    (tmp_path / 'file').write_text('')
    work_dir = tmp_path / 'file' if place == 'a file' else tmp_path / 'file/work'
    assert run_tool('train', tiny_config_file, '--work-dir', work_dir) == 2
    assert str(tmp_path / 'file') in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='Linux')
def test_a_full_disk_ends_a_training_in_a_sentence(tiny_config_file, tmp_path, capfd, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    assert run_tool('train', tiny_config_file, '--work-dir', tmp_path / 'work') == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith('error: ') and 'No space left' in last
    assert not list((tmp_path / 'work').glob('*.pth*'))


def test_a_port_in_use_is_said_by_the_launcher():
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
