"""A work directory in use is refused, and one that a dead training left is not."""
import multiprocessing
import os
import time

import pytest
from running import run_tool

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.io import INCOMPLETE, lock_work_dir, remove_abandoned, write_atomically

FORK = multiprocessing.get_context('fork')


def test_a_second_training_is_refused_at_once_and_a_new_start_is_announced(
        tiny_config_file, tmp_path, capfd):
    work_dir = tmp_path / 'work'
    with lock_work_dir(work_dir):
        start = time.monotonic()
        with pytest.raises(ConfigError, match=f'--work-dir {work_dir} is in use.*wait'):
            lock_work_dir(work_dir)
        assert time.monotonic() - start < 2
        with lock_work_dir(tmp_path / 'other'):
            pass
    options = ['--cfg-options', 'train_cfg.max_epochs=1']
    for expected in (0, 1):
        assert run_tool('train', tiny_config_file, '--work-dir', work_dir, *options) == 0
        assert capfd.readouterr().out.count('This run starts anew') == expected


def hold_and_die(work_dir):
    lock_work_dir(work_dir)
    if os.fork() == 0:  # a process that loads data, and outlives the training for a moment
        time.sleep(0.5)
    os._exit(9)


def test_a_run_that_was_killed_leaves_no_lock(tmp_path):
    process = FORK.Process(target=hold_and_die, args=[tmp_path])
    process.start()
    process.join()
    assert process.exitcode == 9
    with lock_work_dir(tmp_path) as lock:
        assert getattr(lock, 'is_locked', True)


def test_half_written_files_of_others_stay_while_they_live(tmp_path):
    names = [f'a.{os.getpid()}{INCOMPLETE}', f'a.99999999{INCOMPLETE}', f'a{INCOMPLETE}']
    for name in names:
        (tmp_path / name).write_text('')
    remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == names[:1]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'epoch_1.pth'
    write_atomically(path, b'old')

    def full(file):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        write_atomically(path, b'new')
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['epoch_1.pth']
