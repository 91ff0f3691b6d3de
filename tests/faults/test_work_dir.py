"""One run, one folder: a work directory in use is refused, one that a dead run left is not."""
import json
import multiprocessing
import os
import time

import pytest
from running import run_tool

from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.io import INCOMPLETE, remove_abandoned, write_atomically
from groupdetr_mmdet.processes import LOCK, SILENCE, WorkDirLock


def test_a_directory_in_use_is_refused_until_it_is_given_back(tmp_path):
    lock = WorkDirLock(tmp_path / 'work')
    with pytest.raises(ConfigError, match=f'in use by the training of process {os.getpid()}'):
        WorkDirLock(tmp_path / 'work')
    WorkDirLock(tmp_path / 'other').release()
    lock.release()
    WorkDirLock(tmp_path / 'work').release()
    assert not (tmp_path / 'work' / LOCK).exists()


def hold_and_die(work_dir):
    WorkDirLock(work_dir)
    os._exit(9)


def test_a_run_that_was_killed_leaves_no_lock(tmp_path):
    process = multiprocessing.get_context('fork').Process(target=hold_and_die, args=[tmp_path])
    process.start()
    process.join()
    assert (tmp_path / LOCK).exists()
    WorkDirLock(tmp_path).release()


def test_a_process_that_loads_data_does_not_hold_the_lock(tmp_path):
    lock = WorkDirLock(tmp_path)
    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=[30])
    child.start()
    time.sleep(1)  # until it has begun
    os.close(lock.descriptor)  # as the system does when the training is killed
    lock.descriptor = None
    other = WorkDirLock(tmp_path)
    assert other.descriptor is not None and child.is_alive()
    other.release()
    child.kill()
    child.join()


def test_a_run_of_another_machine_is_known_by_its_sign_of_life(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps(dict(host='elsewhere', pid=7)))
    with pytest.raises(ConfigError, match='process 7 on elsewhere.*wait'):
        WorkDirLock(tmp_path)
    long_ago = time.time() - SILENCE - 1
    os.utime(tmp_path / LOCK, (long_ago, long_ago))
    WorkDirLock(tmp_path).release()


@pytest.mark.parametrize('content', ['', 'not JSON', '[]', '{}'])
def test_a_broken_lock_file_is_taken_over(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    lock = WorkDirLock(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())['pid'] == os.getpid()
    lock.release()


def test_a_second_training_is_refused_and_a_new_start_is_announced(tiny_config_file, tmp_path,
                                                                   capfd):
    work_dir = tmp_path / 'work'
    lock = WorkDirLock(work_dir)
    assert run_tool('train', tiny_config_file, '--work-dir', work_dir) == 2
    assert f'error: --work-dir {work_dir} is in use' in capfd.readouterr().err
    lock.release()
    options = ['--cfg-options', 'train_cfg.max_epochs=1']
    for said in (0, 1):
        assert run_tool('train', tiny_config_file, '--work-dir', work_dir, *options) == 0
        assert capfd.readouterr().out.count('This run starts anew') == said


def test_half_written_files_have_names_of_their_own(tmp_path, monkeypatch):
    renamed = []
    replace = os.replace
    monkeypatch.setattr(os, 'replace', lambda *x: (renamed.append(str(x[0])), replace(*x)))
    write_atomically(tmp_path / 'a', b'1')
    assert str(os.getpid()) in renamed[0]


def test_half_written_files_of_others_stay_while_they_live(tmp_path):
    names = [f'a.{os.getpid()}{INCOMPLETE}', f'a.99999999{INCOMPLETE}', f'a{INCOMPLETE}']
    for name in names:
        (tmp_path / name).write_text('')
    remove_abandoned(tmp_path)
    assert os.listdir(tmp_path) == names[:1]
