"""Every command runs on tiny data; a user's mistake ends in a sentence."""
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from running import fork_session, free_port, run_tool, wait_for
from tiny import tiny_config, write_tiny_coco

from groupdetr_mmdet.commands.cli import COMMANDS
from groupdetr_mmdet.commands.test import show

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'

SRUN = """#!/usr/bin/env bash
echo "srun $*"
while [[ $1 == -* ]]; do [[ $1 == -p ]] && shift; shift; done
exec "$@"
"""


def run(*args: object, **env: str) -> str:
    """Run a command and return its output, standard error included."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    result = subprocess.run(
        [str(x) for x in args],
        env=dict(os.environ, OMP_NUM_THREADS='1', **{'PATH': path, **env}),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    return result.stdout


def metrics(work_dir: Path) -> dict:
    """The metrics that the last test in a work directory wrote."""
    file = max(work_dir.glob('*/*.json'))
    return {k: v for k, v in json.loads(file.read_text()).items() if k.startswith('coco')}


def test_the_list_of_commands_imports_nothing_slow():
    code = 'import sys, groupdetr_cli as cli\ntry: cli.main(["--help"])\n' \
           'finally: print(sorted({"torch", "mmdet", "numpy"} & set(sys.modules)))'
    out = run(sys.executable, '-c', code, PYTHONPATH=str(ROOT))
    assert all(name in out for name in COMMANDS) and out.splitlines()[-1] == '[]'


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A folder with ``tiny.py`` and the work directory ``work`` of its two epochs."""
    folder = tmp_path_factory.mktemp('trained')
    tiny_config(write_tiny_coco(folder / 'coco')).dump(folder / 'tiny.py')
    assert run_tool('train', folder / 'tiny.py', '--work-dir', folder / 'work') == 0
    return folder


@pytest.fixture(scope='module')
def tested(trained) -> dict:
    """Metrics of tools/test.py, with all that it can write beside them."""
    work_dir = trained / 'tested'
    assert run_tool('test', trained / 'tiny.py', trained / 'work/epoch_2.pth', '--work-dir',
                    work_dir, '--out', work_dir / 'predictions.pkl', '--show-dir',
                    'pictures') == 0
    assert len(pickle.loads((work_dir / 'predictions.pkl').read_bytes())) == 4
    assert len(list(work_dir.glob('*/pictures/*.jpg'))) == 4
    return metrics(work_dir)


@pytest.fixture
def slurm(tmp_path) -> dict:
    """Environment with a cluster that is this machine."""
    commands = dict(srun=SRUN, scontrol='#!/bin/sh\necho 127.0.0.1\n')
    for name, script in commands.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ['PATH']])
    return dict(PATH=path, MASTER_PORT=free_port(), GPUS='1', GPUS_PER_NODE='1')


def log_of(work_dir: Path) -> str:
    """The latest log in a work directory."""
    return max(work_dir.glob('*/*.log'), key=lambda x: x.stat().st_mtime_ns).read_text()


def validated(work_dir: Path) -> dict:
    """The metrics of a training of one epoch."""
    return {name: float(value) for name, value in re.findall(
        r'(coco/\w+): (\S+)', log_of(work_dir))}


def test_train(trained):
    assert (trained / 'work/epoch_2.pth').is_file()
    log = log_of(trained / 'work')
    assert log.count('coco/bbox_mAP:') == 2 and 'Epoch(train) [2][4/4]' in log
    assert 'AtomicCheckpointHook' in log, "in place of the config's CheckpointHook"


def test_resume_from_a_named_checkpoint_with_scaled_learning_rate(trained, tmp_path):
    """A base batch of 1 doubles the rate of a batch of 2; ``--resume`` alone takes the last."""
    train = ['train', trained / 'tiny.py', '--work-dir', tmp_path, '--resume']
    assert run_tool(*train, trained / 'work/epoch_1.pth', '--auto-scale-lr', '--cfg-options',
                    'auto_scale_lr.base_batch_size=1') == 0
    log = log_of(tmp_path)
    assert 'resumed epoch: 1, iter: 4' in log and 'Epoch(train) [1]' not in log
    assert 'Scaling the original LR by 2.0' in log
    assert run_tool(*train, '--cfg-options', 'train_cfg.max_epochs=3') == 0
    # Runs that start in the same second share a log
    log = log_of(tmp_path).partition('resumed epoch: 2, iter: 8')[2]
    assert 'Epoch(train) [3][4/4]' in log and 'Epoch(train) [2]' not in log


def test_dist_train(trained, tmp_path):
    """Two processes: they train one model, and what they evaluate is what one evaluates."""
    config = trained / 'tiny.py'
    log = run(TOOLS / 'dist_train.sh', config, 2, '--work-dir', tmp_path / 'work',
              '--cfg-options', 'train_cfg.max_epochs=1', PORT=free_port())
    assert 'Distributed training: True' in log and 'GPU number: 2' in log
    assert 'Epoch(train) [1][2/2]' in log  # half of the four iterations of one process
    assert run_tool('test', config, tmp_path / 'work/epoch_1.pth', '--work-dir',
                    tmp_path / 'tested') == 0
    assert metrics(tmp_path / 'tested') == validated(tmp_path / 'work')


@pytest.mark.parametrize('script, arguments, given', [
    ('dist_test', ('a.py', 'b.pth', 2), 'test.py a.py b.pth --launcher pytorch'),
    ('slurm_test', ('debug', 'tiny', 'a.py', 'b.pth'), 'test.py a.py b.pth --launcher=slurm'),
    ('slurm_train', ('debug', 'tiny', 'a.py', 'work'),
     'train.py a.py --work-dir=work --launcher=slurm')])
def test_scripts_have_the_arguments_of_their_command(script, arguments, given, slurm):
    log = run(TOOLS / f'{script}.sh', *arguments, '--out', 'c.pkl', SRUN_ARGS='--quiet --qos=low',
              **dict(slurm, PYTHON='echo'))
    assert log.endswith(f'{TOOLS}/{given} --out c.pkl\n')
    if 'slurm' in script:
        assert 'srun -p debug --job-name=tiny --gres=gpu:1 --ntasks=1' in log
        assert '--quiet --qos=low' in log


def test_a_job_of_slurm_trains(trained, tmp_path, slurm):
    def run_job():
        os.environ.update(slurm, SLURM_PROCID='0', SLURM_LOCALID='0', SLURM_NTASKS='1',
                          SLURM_NODELIST='localhost')
        return run_tool('train', trained / 'tiny.py', '--work-dir', tmp_path / 'work',
                        '--launcher', 'slurm', '--cfg-options', 'train_cfg.max_epochs=1')

    output = tmp_path / 'output'
    assert wait_for(fork_session(run_job, output), 240) == 0, output.read_text()
    assert 'Distributed training: True' in log_of(tmp_path / 'work')
    assert (tmp_path / 'work/epoch_1.pth').is_file()


@pytest.mark.parametrize('command, words', [
    ('train {config} --auto-scale-lr --cfg-options auto_scale_lr=None', 'base_batch_size'),
    ('train {config} --launcher pytorch', 'RANK'), ('train {config} --epochs 0', '--epochs'),
    ('train {config} --cfg-options a', '--cfg-options a'),
    ('test {config} {config} --out predictions.txt', '--out: predictions.txt is not ')])
def test_mistakes(tiny_config_file, tmp_path, last_error, command, words):
    args = command.format(config=tiny_config_file).split()
    assert words in last_error(*args, '--work-dir', tmp_path / 'work')


def test_weights_of_a_distributed_model_of_other_groups_are_evaluated(trained, tested, tmp_path):
    checkpoint = torch.load(trained / 'work/epoch_2.pth')
    weights = {f'module.{name}': x for name, x in checkpoint['state_dict'].items()}
    torch.save(dict(checkpoint, state_dict=weights), tmp_path / 'distributed.pth')
    assert run_tool('test', trained / 'tiny.py', tmp_path / 'distributed.pth', '--work-dir',
                    tmp_path, '--cfg-options', 'model.num_query_groups=2') == 0
    assert metrics(tmp_path) == tested


def test_augmentation_of_a_test_finds_the_same_in_an_image_and_its_copy(
        trained, tested, tmp_path, monkeypatch):
    """Also by the flips that are mmdet's default; mmcv-lite has no op for NMS."""
    counts = []

    def keep_all(boxes, scores, labels, nms):
        counts.append(len(boxes))
        order = scores.argsort(descending=True, stable=True)[::len(boxes) // 20]
        return torch.cat([boxes, scores[:, None]], 1)[order], order

    monkeypatch.setattr('mmdet.models.test_time_augs.det_tta.batched_nms', keep_all)
    config = Config.fromfile(trained / 'tiny.py')
    *load, pack = config.test_dataloader.dataset.pipeline
    pack.meta_keys += ('flip', 'flip_direction')
    config.tta_pipeline = [*load, dict(type='TestTimeAug', transforms=[
        2 * [dict(type='RandomFlip', prob=0.)], [pack]])]
    config.dump(tmp_path / 'copy.py')
    checkpoint = shutil.copy(trained / 'work/epoch_2.pth', tmp_path)
    found = {}
    for name in (tmp_path / 'copy.py', trained / 'tiny.py'):
        out = tmp_path / f'{name.stem}.pkl'
        assert run_tool('test', name, checkpoint, '--tta', '--work-dir', tmp_path / name.stem,
                        '--out', out) == 0
        found[name.stem] = pickle.loads(out.read_bytes())
    assert counts == 8 * [40]
    single = pickle.loads((trained / 'tested/predictions.pkl').read_bytes())
    same = [[torch.equal(x['pred_instances']['scores'], y['pred_instances']['scores'])
             for x, y in zip(single, found[name])] for name in ('copy', 'tiny')]
    assert all(same[0]) and not any(same[1])


def test_averaged_weights_are_evaluated(trained, tested, tmp_path):
    """Weights of a run with averaging, and of a run without."""
    config = Config.fromfile(trained / 'tiny.py')
    config.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
    config.train_cfg.max_epochs = 1
    config.dump(tmp_path / 'ema.py')
    assert run_tool('train', tmp_path / 'ema.py', '--work-dir', tmp_path / 'work') == 0
    assert 'ema_state_dict' in torch.load(tmp_path / 'work/epoch_1.pth')
    averaged = validated(tmp_path / 'work')
    for name, checkpoint, expected in (('averaged', tmp_path / 'work/epoch_1.pth', averaged),
                                       ('plain', trained / 'work/epoch_2.pth', tested)):
        assert run_tool('test', tmp_path / 'ema.py', checkpoint, '--work-dir',
                        tmp_path / name) == 0
        assert metrics(tmp_path / name) == expected


@pytest.mark.parametrize(('metrics', 'rows'), [
    ({'coco/bbox_mAP': .7, 'coco/bbox_mAP_s': -1.}, {'bbox': ['0.700', '-']}),
    ({'a/coco/bbox_mAP': .7, 'b/coco/bbox_mAP': np.float32(.1)},
     {'a/coco/bbox': ['0.700'], 'b/coco/bbox': ['0.100']}),
    ({'coco/red_car_precision': .3, 'coco/cat_precision': .4},
     {'red_car': ['0.300'], 'cat': ['0.400']})])
def test_every_metric_has_a_cell_in_the_table_of_a_test(metrics, rows, capsys):
    show(metrics)
    lines = [line.strip('│').split('│') for line in capsys.readouterr().out.splitlines()
             if line.startswith('│')]
    assert {name.strip(): [x.strip() for x in cells] for name, *cells in lines} == rows
