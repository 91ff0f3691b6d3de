"""Every command runs, as a process, on tiny data; a user's mistake ends in a sentence."""
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import mmdet
import pytest
import torch
from mmengine.config import Config
from running import free_port, run_tool
from tiny import tiny_config, write_tiny_coco

from groupdetr_mmdet.commands.cli import COMMANDS, run as run_command

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'

SRUN = """#!/usr/bin/env bash
# Starts SLURM_NTASKS processes here, as srun would on the nodes of a cluster.
echo "srun $*"
while [[ $1 == -* ]]; do
    case $1 in
        --ntasks=*) export SLURM_NTASKS=${1#--ntasks=} ;;
        -p) shift ;;
    esac
    shift
done
export SLURM_NODELIST=localhost
for ((i = 0; i < SLURM_NTASKS; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
done
for job in $(jobs -p); do wait "$job" || exit; done
"""


class Trained(NamedTuple):
    config: Path
    work_dir: Path
    log: str


def run(*args: object, status: int = 0, **env: str) -> str:
    """Run a command and return its output, standard error included."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    result = subprocess.run(
        [str(x) for x in args],
        env=dict(os.environ, OMP_NUM_THREADS='1', **{'PATH': path, **env}),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == status, result.stdout
    return result.stdout


def metrics(work_dir: Path) -> dict:
    """The metrics that the last test in a work directory wrote."""
    file = max(work_dir.glob('*/*.json'))
    return {k: v for k, v in json.loads(file.read_text()).items() if k.startswith('coco')}


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        run_command(command, ['--help'], f'groupdetr {command}')
    assert end.value.code == 0
    help_text = capsys.readouterr().out
    assert f'usage: groupdetr {command}' in help_text and '%(' not in help_text


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two epochs of tools/train.py."""
    folder = tmp_path_factory.mktemp('trained')
    config = folder / 'tiny.py'
    tiny_config(write_tiny_coco(folder / 'coco')).dump(config)
    log = run(sys.executable, TOOLS / 'train.py', config, '--work-dir', folder / 'work')
    return Trained(config, folder / 'work', log)


@pytest.fixture(scope='module')
def tested(trained: Trained) -> dict:
    """Metrics of tools/test.py, with all that it can write beside them."""
    work_dir = trained.work_dir.parent / 'tested'
    run(sys.executable, TOOLS / 'test.py', trained.config, trained.work_dir / 'epoch_2.pth',
        '--work-dir', work_dir, '--out', work_dir / 'predictions.pkl', '--show-dir', 'pictures')
    assert len(pickle.loads((work_dir / 'predictions.pkl').read_bytes())) == 4
    assert len(list(work_dir.glob('*/pictures/*.jpg'))) == 4
    return metrics(work_dir)


@pytest.fixture
def slurm(tmp_path: Path) -> dict:
    """Environment with a cluster that is this machine."""
    commands = dict(srun=SRUN, scontrol='#!/bin/sh\necho 127.0.0.1\n')
    for name, script in commands.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ['PATH']])
    return dict(PATH=path, MASTER_PORT=free_port(), GPUS='2', GPUS_PER_NODE='2')


def test_train(trained: Trained):
    assert (trained.work_dir / 'epoch_2.pth').is_file()
    assert trained.log.count('coco/bbox_mAP:') == 2
    assert 'Epoch(train) [2][4/4]' in trained.log
    assert 'AtomicCheckpointHook' in trained.log, "in place of the config's CheckpointHook"


def test_resume_from_a_named_checkpoint_with_scaled_learning_rate(
        trained: Trained, tmp_path: Path):
    """A base batch of 1 doubles the rate of a batch of 2; ``--resume`` alone takes the last."""
    log = run(sys.executable, TOOLS / 'train.py', trained.config, '--work-dir', tmp_path,
              '--resume', trained.work_dir / 'epoch_1.pth', '--auto-scale-lr',
              '--cfg-options', 'auto_scale_lr.base_batch_size=1')
    assert 'resumed epoch: 1, iter: 4' in log
    assert 'Epoch(train) [1]' not in log
    assert 'Scaling the original LR by 2.0' in log
    log = run(sys.executable, TOOLS / 'train.py', trained.config, '--work-dir', tmp_path,
              '--resume', '--cfg-options', 'train_cfg.max_epochs=3')
    assert 'resumed epoch: 2, iter: 8' in log
    assert 'Epoch(train) [3][4/4]' in log and 'Epoch(train) [2]' not in log


def test_dist_train_and_dist_test(trained: Trained, tested: dict, tmp_path: Path):
    """Two processes: they train one model, and what they evaluate is what one evaluates."""
    log = run(TOOLS / 'dist_train.sh', trained.config, 2, '--work-dir', tmp_path,
              '--cfg-options', 'train_cfg.max_epochs=1', PORT=free_port())
    assert 'Distributed training: True' in log and 'GPU number: 2' in log
    assert 'Epoch(train) [1][2/2]' in log  # half of the four iterations of one process
    assert (tmp_path / 'epoch_1.pth').is_file()

    run(TOOLS / 'dist_test.sh', trained.config, trained.work_dir / 'epoch_2.pth', 2,
        '--work-dir', tmp_path, PORT=free_port())
    assert metrics(tmp_path) == tested


def test_slurm_train(trained: Trained, tmp_path: Path, slurm: dict):
    log = run(TOOLS / 'slurm_train.sh', 'debug', 'tiny', trained.config, tmp_path / 'work',
              '--cfg-options', 'train_cfg.max_epochs=1', SRUN_ARGS='--quiet --qos=low', **slurm)
    assert 'srun -p debug --job-name=tiny --gres=gpu:2 --ntasks=2' in log
    assert '--quiet --qos=low' in log
    assert 'Epoch(train) [1][2/2]' in log
    assert (tmp_path / 'work/epoch_1.pth').is_file()


def test_train_of_mmdet(trained: Trained, tmp_path: Path):
    """mmdet's own command needs nothing but ``custom_imports``."""
    train = Path(mmdet.__file__).parent / '.mim/tools/train.py'
    log = run(sys.executable, train, trained.config, '--work-dir', tmp_path, '--cfg-options',
              'train_cfg.max_epochs=1', PYTHONPATH=str(ROOT))
    assert 'Epoch(train) [1][4/4]' in log
    assert (tmp_path / 'epoch_1.pth').is_file()


def test_mistake_of_several_processes_ends_in_one_sentence(trained: Trained, tmp_path: Path):
    out = run(TOOLS / 'dist_train.sh', trained.config, 2, '--resume', 'nowhere.pth',
              '--work-dir', tmp_path, status=2, PORT=free_port())
    assert out.count('error: --resume: nowhere.pth does not exist; ') == 1
    assert 'Traceback' not in out


@pytest.mark.parametrize('command, words', [
    ('train {config} --auto-scale-lr --cfg-options auto_scale_lr=None', 'base_batch_size'),
    ('train {config} --launcher pytorch', 'RANK'), ('train {config} --epochs 0', '--epochs'),
    ('train {config} --cfg-options a', '--cfg-options a'),
    ('test {config} {config} --out predictions.txt', '--out: predictions.txt is not ')])
def test_mistakes(tiny_config_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture,
                  command: str, words: str):
    args = command.format(config=tiny_config_file).split()
    assert run_tool(*args, '--work-dir', tmp_path / 'work') == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert 'error: ' in last and words in last


def test_weights_of_a_distributed_model_of_other_groups_are_evaluated(
        trained: Trained, tested: dict, tmp_path: Path):
    checkpoint = torch.load(trained.work_dir / 'epoch_2.pth')
    checkpoint['state_dict'] = {f'module.{name}': tensor
                                for name, tensor in checkpoint['state_dict'].items()}
    torch.save(checkpoint, tmp_path / 'distributed.pth')
    assert run_tool('test', trained.config, tmp_path / 'distributed.pth', '--work-dir', tmp_path,
                    '--cfg-options', 'model.num_query_groups=2') == 0
    assert metrics(tmp_path) == tested


def test_averaged_weights_are_evaluated(trained: Trained, tested: dict, tmp_path: Path):
    """Those of a training that averages, and those of one that does not."""
    config = Config.fromfile(trained.config)
    config.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
    config.train_cfg.max_epochs = 1
    config.dump(tmp_path / 'ema.py')
    assert run_tool('train', tmp_path / 'ema.py', '--work-dir', tmp_path / 'work') == 0
    assert 'ema_state_dict' in torch.load(tmp_path / 'work/epoch_1.pth')
    log, = tmp_path.glob('work/*/*.log')
    validated = {name: float(value)
                 for name, value in re.findall(r'(coco/\w+): (\S+)', log.read_text())}
    for name, checkpoint, expected in (('averaged', tmp_path / 'work/epoch_1.pth', validated),
                                       ('plain', trained.work_dir / 'epoch_2.pth', tested)):
        assert run_tool('test', tmp_path / 'ema.py', checkpoint, '--work-dir',
                        tmp_path / name) == 0
        assert metrics(tmp_path / name) == expected
