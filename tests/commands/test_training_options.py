"""A training with the options that people set, in a terminal, and before it begins."""
import contextlib
import io
import json
import os
import pty
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from rich.console import Console
from running import fork_session, run_tool, wait_for
from tiny import tiny_config, write_tiny_coco

from groupdetr_mmdet.checkpoints.named import best_checkpoint
from groupdetr_mmdet.commands.train import show_next
from groupdetr_mmdet.config import read_config
from groupdetr_mmdet.io import write_atomically
from groupdetr_mmdet.training.dry_run import SMALL_CONFIG, is_slow
from groupdetr_mmdet.training.progress import Prints


def run_in_terminal(*args: object, status: int = 0) -> str:
    """Run a tool in a process with a pseudo-terminal, and return what it wrote there."""
    def run() -> int:
        os.environ.update(COLUMNS='120', TERM='xterm')
        return run_tool(*args)

    master, slave = pty.openpty()
    pid = fork_session(run, Path(os.ttyname(slave)))
    os.close(slave)
    written = b''
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(master, 1 << 16):
            written += part
    os.close(master)
    text = written.decode()
    assert wait_for(pid, 240) == status, text
    return text


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Work directory and terminal of a training with all options."""
    folder = tmp_path_factory.mktemp('options')
    config = folder / 'tiny.py'
    tiny_config(write_tiny_coco(folder / 'coco')).dump(config)
    text = run_in_terminal(
        'train', config, '--work-dir', folder / 'work', '--epochs', 3, '--batch-size', 1, '--ema',
        '--early-stop', 5)
    return config, folder / 'work', text


def test_a_terminal_shows_progress_and_the_log_all(trained):
    _, work_dir, text = trained
    lines = [line for line in re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text).splitlines() if line]
    assert len([line for line in lines if line.startswith('epoch 1: loss ')]) == 1
    assert all(re.search(rf'epoch {i}: loss [\d.]+  AP [\d.]+  AP50 [\d.]+', text)
               for i in (1, 2, 3))
    assert re.search(r'epoch 3/3  loss [\d.]+', text) and 'eta' in text and '24/24' in text
    assert 'Epoch(train)' not in text and 'creating index' not in text
    log, = work_dir.glob('*/*.log')
    logged = log.read_text()
    assert 'Epoch(train) [3][8/8]' in logged and 'creating index' in logged
    assert f'the log is {os.path.relpath(log)}' in text.replace('\r\n', '')


def test_a_user_s_prints_are_shown_and_those_of_libraries_logged():
    text, logged = io.StringIO(), []
    with contextlib.redirect_stdout(Prints(Console(file=text))) as prints:
        prints.logger = SimpleNamespace(info=logged.append)
        for module in ('pycocotools.coco', 'mmdet', 'my_hooks', '__main__'):
            exec(f'print("of {module}")', dict(__name__=module))
    assert text.getvalue() == 'of my_hooks\nof __main__\n'
    assert logged == ['of pycocotools.coco', 'of mmdet']


def test_a_terminal_shows_a_test_by_a_bar_and_a_table(trained):
    config, work_dir, _ = trained
    text = run_in_terminal('test', config, 'best', '--work-dir', work_dir)
    assert 'testing' in text and '2/2' in text and 'AP50' in text
    assert 'Epoch(test)' not in text and 'creating index' not in text


def test_weights_are_checked_in_a_terminal_too(trained, tmp_path):
    config, _, _ = trained
    torch.save(dict(state_dict=dict(x=torch.zeros(1))), tmp_path / 'other.pth')
    text = run_in_terminal('train', config, '--work-dir', tmp_path / 'work', '--cfg-options',
                           f'load_from={tmp_path}/other.pth', status=2)
    assert 'does not fit the config' in text and 'Traceback' not in text


def test_the_averaged_weights_of_all_epochs_are_kept(trained):
    _, work_dir, text = trained
    last = torch.load(work_dir / 'epoch_3.pth')
    assert last['meta']['iter'] == 24 and 'ema_state_dict' in last
    assert best_checkpoint(work_dir) and f'groupdetr report {os.path.relpath(work_dir)}' in text


@pytest.mark.parametrize('name', ['best', 'last'])
def test_best_and_last_are_checkpoints(trained, name, tmp_path, capfd):
    config, work_dir, _ = trained
    assert run_tool('test', config, name, '--work-dir', work_dir) == 0
    loaded = best_checkpoint(work_dir) if name == 'best' else work_dir / 'epoch_3.pth'
    assert f'checkpoint from {loaded}' in capfd.readouterr().out
    assert run_tool('test', config, name, '--work-dir', tmp_path) == 2
    assert f'CHECKPOINT: {tmp_path} has no {name} checkpoint' in capfd.readouterr().err


def test_the_report_takes_the_best_and_says_so(trained):
    _, work_dir, _ = trained
    assert run_tool('report', work_dir) == 0
    best = best_checkpoint(work_dir)
    assert f'{best.name}, the best of the training' in (work_dir / 'report.html').read_text()


def test_a_dry_run_says_what_a_training_takes(tiny_config_file, tmp_path, capfd):
    """Weights that cannot be fetched are not missed."""
    nowhere = 'http://127.0.0.1:9/x.pth'
    cfg = Config.fromfile(tiny_config_file)
    cfg.load_from = nowhere
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=nowhere)
    cfg.dump(tiny_config_file)
    assert run_tool('train', tiny_config_file, '--work-dir', tmp_path / 'work', '--dry-run',
                    '--batch-size', 1, '--epochs', 10) == 0
    out = capfd.readouterr().out
    rows = dict(re.findall(r'│ (\S.*?) +│ (\S.*?) +│', out))
    assert rows['steps'] == '80, 8 an epoch'
    assert rows['images an update'] == '2 = 1 x 1 processes x 2 accumulated steps'
    seconds = float(rows['seconds a step'])
    assert seconds > 0
    assert float(rows['hours in all'].split(',')[0]) == pytest.approx(
        seconds * 80 / 3600, abs=.01)
    assert rows['learning rate'] == '0.0001' and 'GiB' in rows['by groups at once']
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('has_gpu', [False, True])
def test_a_large_backbone_is_slow_without_a_gpu(has_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_gpu)
    assert is_slow(read_config('group_dino_4scale_r50_12e')) != has_gpu
    assert not is_slow(read_config(SMALL_CONFIG))


def test_a_training_begins_with_weights_of_other_classes(trained, tiny_coco, tmp_path, capfd):
    """Also with the weights alone, of a wrapped model, and averaged weights."""
    _, work_dir, _ = trained
    saved = torch.load(work_dir / 'epoch_3.pth')['state_dict']
    torch.save({f'module.{name}': x for name, x in saved.items()}, tmp_path / 'bare.pth')
    cfg = tiny_config(tiny_coco)
    for mode in ('train', 'val', 'test'):
        cfg[f'{mode}_dataloader'].dataset.metainfo = dict(classes=('red', 'green'))
    cfg.model.bbox_head.num_classes = 2
    cfg.load_from = str(tmp_path / 'bare.pth')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='no_longer_needed.pth')
    cfg.dump(tmp_path / 'two.py')
    assert run_tool('train', tmp_path / 'two.py', '--work-dir', tmp_path / 'work', '--epochs', 1,
                    '--ema', '--cfg-options', 'optim_wrapper.optimizer.lr=0.') == 0
    assert capfd.readouterr().out.count('load_from has 3 classes and the model 2') == 1
    own = torch.load(tmp_path / 'work/epoch_1.pth')['state_dict']
    same = [name for name, x in own.items() if torch.equal(x, saved.get(name, torch.empty(0)))]
    assert set(own) - set(same) == {'bbox_head.fc_cls.weight', 'bbox_head.fc_cls.bias'}


@pytest.mark.parametrize(('row', 'written', 'reported'), [
    ('sound', 'best_AP_epoch_1.pth', True), ('best of an earlier run', 'epoch_1.pth', False),
    ('no validation', 'epoch_1.pth', False), ('a log by iteration', 'best_AP_epoch_1.pth', True),
    ('without a log', 'best_AP_epoch_1.pth', False),
    ('without groups', 'best_AP_epoch_1.pth', False)])
def test_what_comes_next_is_of_this_run_and_can_be_run(row, written, reported, tmp_path,
                                                       monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('epoch_1.pth', 'best_AP_epoch_1.pth')[:1 if row == 'no validation' else 2]:
        Path(name).touch()
    Path('last_checkpoint').write_text('/elsewhere/epoch_1.pth')
    step = dict(loss=1., step=1, time=1., **{} if row == 'a log by iteration' else dict(epoch=1))
    lines = [] if row == 'without a log' else [step, {'coco/bbox_mAP': .5, 'step': 1}]
    write_atomically('1/vis_data/scalars.json', '\n'.join(map(json.dumps, lines)).encode())
    cfg = tiny_config(tmp_path, num_query_groups=None if row == 'without groups' else 3)
    info = {} if row == 'best of an earlier run' else dict(best_ckpt='best_AP_epoch_1.pth')
    show_next(SimpleNamespace(config='c.py', work_dir='.', cfg_options=None), SimpleNamespace(
        work_dir='.', cfg=cfg, message_hub=SimpleNamespace(runtime_info=info)))
    out = capsys.readouterr().out
    assert f'Wrote {written}' in out and f'groupdetr test c.py {written}' in out
    assert ('groupdetr report' in out) == reported
