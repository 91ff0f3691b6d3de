"""A checkpoint in a work directory is used with the config that its training wrote there."""
import argparse
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Dict, Set

import pytest
import torch
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from running import run_tool
from tiny import tiny_config, write_tiny_coco

from groupdetr_mmdet.checkpoints.named import POINTER, best_checkpoint, trained_config
from groupdetr_mmdet.commands import train
from groupdetr_mmdet.commands.common import load_trained, work_dir_of
from groupdetr_mmdet.config import read_config

SCALES = [f'{mode}_dataloader.dataset.pipeline.1.scale=(96,96)' for mode in ('val', 'test')]
OPTIONS = ['--epochs', 2, '--batch-size', 1, '--cfg-options', 'model.num_query_groups=2', *SCALES]


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """A config in the current folder, with ``coco/`` beside it, of a training that learns."""
    monkeypatch.chdir(tmp_path)
    cfg = tiny_config(write_tiny_coco(Path('coco')))
    cfg.optim_wrapper.optimizer.lr = 1e-3
    cfg.visualizer.name = str(tmp_path)  # or it is the last test's
    cfg.dump('X.py')
    return Path('X.py')


def metrics_of(entry: Dict[str, float]) -> Dict[str, float]:
    return {key: value for key, value in entry.items() if key.startswith('coco/')}


def validated(work_dir: Path) -> Dict[str, float]:
    """The metrics of the best validation."""
    scalars = min(work_dir.glob('*/vis_data/scalars.json'))
    entries = map(metrics_of, map(json.loads, scalars.read_text().splitlines()))
    return max(filter(None, entries), key=lambda entry: entry['coco/bbox_mAP'])


def configs_in(folder: Path) -> Set[bytes]:
    return {path.read_bytes() for path in folder.rglob('*.py')}


def test_the_printed_commands_score_what_was_trained(config, capfd):
    work_dir = Path('there')
    assert run_tool('train', config, *OPTIONS, f'work_dir={work_dir}') == 0
    out = capfd.readouterr().out
    expected, written = validated(work_dir), configs_in(work_dir)
    assert len(written) == 1 and expected['coco/bbox_mAP_50'] > 0
    test, predict, report = (shlex.split(line) for line in re.findall('groupdetr (.+)', out)[-3:])

    assert run_tool(*test) == 0
    used = f'Using {work_dir}/X.py, which the training wrote; X.py differs in model, test_data'
    assert used in capfd.readouterr().out
    tested = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    assert metrics_of(json.loads(tested.read_text())) == expected

    predict[1:2] = sorted(map(str, Path('coco/images').glob('val_*')))
    assert run_tool(*predict, '--score-thr', 0, '--ann-file', 'coco/val.json', '--no-vis') == 0
    truth = COCO('coco/val.json')
    scored = COCOeval(truth, truth.loadRes('found/results.json'), 'bbox')
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert [f'{x:.3f}' for x in scored.stats[:2]] == [
        f'{expected[key]:.3f}' for key in ('coco/bbox_mAP', 'coco/bbox_mAP_50')]

    assert run_tool(*report) == 0
    record = json.loads(best_checkpoint(work_dir).with_suffix('.groups.json').read_text())
    assert [group['bbox_mAP'] for group in record['groups']][0] == expected['coco/bbox_mAP']
    assert configs_in(work_dir) == written, 'only a training writes configs'


ALL = ['--epochs', 1, '--batch-size', 1, '--amp', '--ema', '--early-stop', 2, '--auto-scale-lr',
       '--allow-missing']


def test_what_a_run_writes_can_be_run(config, capfd):
    """With all options at once; what it writes again is the same."""
    assert run_tool('train', config, '--work-dir', 'first', *ALL) == 0
    assert run_tool('train', config, '--work-dir', 'first', *ALL, '--epochs', 2, '--resume') == 0
    dumped = Path('first/X.py')
    assert run_tool('train', dumped, '--work-dir', 'again', *ALL, '--epochs', 2) == 0
    assert run_tool('test', dumped, 'last') == 0
    text = dumped.read_text()
    assert Path('again/X.py').read_text() == text.replace("'first'", "'again'")
    assert 'resume' not in text and 'Checked' not in text
    capfd.readouterr()
    image = shutil.copy('coco/images/val_0.jpg', '.')
    shutil.rmtree('coco/images')  # neither needs the data
    Path('coco/train.json').unlink()
    assert run_tool('predict', image, config, 'first/epoch_2.pth', '--out', 'found') == 0
    pytest.importorskip('onnxruntime')
    assert run_tool('export_onnx', dumped, 'last', 'model.onnx') == 0
    assert run_tool('test', dumped, 'best') == 2
    out, error = capfd.readouterr()
    assert 'coco/images' in error and 'differs' not in out


def parsed(*args: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(list(map(str, args)))


@pytest.mark.parametrize('options', [
    ['--epochs', 3], ['--batch-size', 1, '--auto-scale-lr'], ['--ema'], ['--early-stop', 2],
    ['--tensorboard'], ['--wandb'], ['--amp'], ['--allow-missing'], ['--resume'],
    ['--resume', 'X.py', '--launcher', 'pytorch']])
def test_an_option_twice_is_the_option_once(config, options):
    texts = [config.read_text()]
    for _ in range(2):
        args = parsed(config, *options)
        cfg = train.start_run(train.load_config(args), args)
        texts.append(cfg.pretty_text)
        cfg.dump(config)
    assert texts[1] == texts[2]


def save(path: Path, text: str) -> str:
    """Save a checkpoint as a training with the text of a config does."""
    path.parent.mkdir(exist_ok=True, parents=True)
    torch.save(dict(meta=dict(cfg=text), state_dict={}), path)
    return str(path)


def test_of_two_trainings_the_checkpoint_s_own_is_found(tmp_path):
    first, second = (tmp_path / f'work/{day}/vis_data/config.py' for day in (1, 2))
    for file, text in ((first, 'a = 1'), (second, 'a = 2'), (tmp_path / 'work/X.py', 'a = 2'),
                       (tmp_path / 'work/Y.py', 'b = 1')):
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
    for text, found in (('a = 1', first), ('a = 2', tmp_path / 'work/X.py'),
                        ('b = 1', tmp_path / 'work/Y.py'), ('b = 2', None)):
        assert trained_config(save(tmp_path / 'work/c.pth', text)) == found
    assert trained_config(save(tmp_path / 'moved/c.pth', 'a = 1')) is None
    (tmp_path / 'work/Z.py').mkdir()
    assert trained_config(save(tmp_path / 'work/c.pth', 'a = 3')) is None
    torch.save(argparse.ArgumentParser, tmp_path / 'work/odd.pth')  # asks for code
    for name in ('odd.pth', 'X.py', 'none.pth'):
        assert trained_config(str(tmp_path / 'work' / name)) is None


def test_the_config_of_a_moved_work_directory_finds_its_checkpoints_there(config):
    """Another run has taken the place that the config names."""
    cfg = Config.fromfile(config)
    for folder, seed in (('work_dirs/X', 1), ('moved', 2)):
        cfg.update(work_dir='work_dirs/X', randomness=dict(seed=seed))
        save(Path(folder, 'epoch_1.pth'), cfg.pretty_text)
        cfg.dump(f'{folder}/X.py')
        Path(folder, POINTER).write_text('/before/work_dirs/X/epoch_1.pth')
    args = argparse.Namespace(config='moved/X.py', checkpoint='last', cfg_options=None)
    found = load_trained(args)
    assert args.checkpoint == 'moved/epoch_1.pth' and found.work_dir == 'moved'
    assert found.randomness.seed == 2
    Path('elsewhere').mkdir()  # as by default_hooks.checkpoint.out_dir
    shutil.move('moved/epoch_1.pth', 'elsewhere')
    Path('moved', POINTER).write_text('elsewhere/epoch_1.pth')
    args.checkpoint = 'last'
    assert load_trained(args).work_dir == 'moved' and args.checkpoint == 'elsewhere/epoch_1.pth'
    assert work_dir_of(read_config('moved/X.py'), parsed('moved/X.py')) == 'moved'
    assert work_dir_of(found, parsed('moved/X.py', '--work-dir', 'w')) == 'w'


def test_a_config_of_another_name_is_a_target_to_convert_to(config):
    assert run_tool('train', config, '--epochs', 1, '--cfg-options',
                    'model.num_query_groups=2') == 0
    shutil.copy(config, 'Y.py')
    for name, src, groups in (('X.py', 'last', 2), ('Y.py', 'work_dirs/X/epoch_1.pth', 3)):
        assert run_tool('convert_checkpoint', name, src, 'out.pth') == 0
        weights = torch.load('out.pth')['state_dict']
        assert len(weights['query_embedding.weight']) == groups * 10
