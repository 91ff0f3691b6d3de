"""Every way to load weights refuses damaged weights and weights of another model."""
import copy
import functools
import re
from pathlib import Path

import pytest
import torch
from builders import build, detector_config
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from running import run_tool
from tiny import Files, write_detector

from groupdetr_mmdet.analysis import report
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.training.runner import build_runner, with_checked_weights


class Bomb:
    """Pickles as a call."""

    def __reduce__(self):
        return print, ('it ran', )


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> Files:
    """A detector, its checkpoint and data."""
    return write_detector(tmp_path_factory.mktemp('files'))


def edit(checkpoint: dict, change) -> dict:
    checkpoint = copy.deepcopy(checkpoint)
    change(checkpoint['state_dict'])
    return checkpoint


def nan(state_dict: dict) -> None:
    state_dict['bbox_head.fc_reg.bias'][1] = float('nan')


def shorten(state_dict: dict) -> None:
    del state_dict['decoder.post_norm.weight'], state_dict['backbone.layer4.1.conv2.weight']


def widen(state_dict: dict) -> None:
    for prefix in ('', 'backbone.'):
        state_dict[f'{prefix}layer4.1.conv2.weight'] = torch.zeros(7)


# Change of a good checkpoint, and words of the error.
FAULTS = {
    'NaN': (lambda c: edit(c, nan), 'has NaN or infinite weights'),
    'tensors missing': (lambda c: edit(c, shorten), 'has no|of another model|2 missing'),
    'another shape': (lambda c: edit(c, widen), 'layer4.1.conv2|of another model'),
    'another model': (lambda c: dict(c, state_dict=torch.nn.Linear(2, 2).state_dict()),
                      'not fit|of another model|names of none|has no tensor'),
    'no tensors': (lambda c: dict(c, state_dict={}), 'holds no state dict of tensors'),
    'a list': (lambda c: [1, 2], 'holds no state dict of tensors'),
    'code': (lambda c: dict(c, evil=Bomb()), 'could run any code'),
}


def runner_of(files: Files, **changes) -> Runner:
    config = Config.fromfile(files.config)
    config.merge_from_dict(dict(changes, work_dir=str(files.data / 'work')))
    config.visualizer.name = config.experiment_name = str(hash(str(changes)))
    return build_runner(config)


@functools.lru_cache
def runner_that_loads(files: Files, resume: bool) -> Runner:
    return runner_of(files, resume=resume)


def load(files: Files, checkpoint: Path, resume: bool = False) -> torch.nn.Module:
    runner = runner_that_loads(files, resume)
    runner._load_from, runner._has_loaded = str(checkpoint), False
    runner.load_or_resume()
    return runner.model


def load_and_resume(files: Files, checkpoint: Path) -> None:
    load(files, checkpoint, resume=True)


def run_report(files: Files, checkpoint: Path) -> torch.nn.Module:
    return report.evaluate(Config.fromfile(files.config), str(checkpoint), files.data)[0]


def run_init_cfg(files: Files, checkpoint: Path) -> torch.nn.Module:
    init_default_scope('mmdet')
    config = detector_config()
    config['backbone']['init_cfg'] = dict(
        type='Pretrained', checkpoint=str(checkpoint), prefix='backbone.')
    built = []  # as in a runner
    with_checked_weights(lambda: built.append(build(config)))()
    return built[0]


def command(name: str, *args: str):
    def run(files: Files, checkpoint: Path) -> None:
        words = [x.format(config=files.config, data=files.data / 'images', checkpoint=checkpoint,
                          out=files.data / 'out') for x in args]
        status = run_tool(name, *words)
        if status:
            assert status == 2
            raise ConfigError('of the command')
    return run


WAYS = {
    'load_from': load, 'resume': load_and_resume, 'report': run_report, 'init_cfg': run_init_cfg,
    'test': command('test', '{config}', '{checkpoint}'),
    'predict': command('predict', '{data}', '{config}', '{checkpoint}', '--out', '{out}'),
    'convert': command('convert_checkpoint', '{config}', '{checkpoint}', '{out}.pth'),
    'export': command('export_onnx', '{config}', '{checkpoint}', '{out}.onnx'),
    'draw-queries': command('draw_queries', '{config}', '{checkpoint}', '--out', '{out}.png'),
}


SLOW = ('report', 'test')  # which make a runner for each checkpoint
FEW = ('NaN', 'another model')


def sentence(way: str, files: Files, checkpoint: Path, capsys) -> str:
    with pytest.raises(ConfigError) as error:
        WAYS[way](files, checkpoint)
    output = capsys.readouterr()
    assert 'it ran' not in output.out
    if str(error.value) != 'of the command':
        return str(error.value)
    assert 'Traceback' not in output.err
    return output.err[output.err.index('error: '):]


@pytest.mark.parametrize('way', WAYS)
def test_weights_that_do_not_fit_are_refused(way, files, tmp_path, capsys):
    good = torch.load(files.checkpoint)
    good['meta'].update(epoch=1, iter=1)
    for fault, (change, words) in FAULTS.items():
        if way in SLOW and fault not in FEW:
            continue
        checkpoint = tmp_path / f'{fault.replace(" ", "_")}.pth'
        torch.save(change(good), checkpoint)
        output = sentence(way, files, checkpoint, capsys)
        assert re.search(words, output), (fault, output)


@pytest.mark.parametrize(('way', 'prefix'), [
    *((way, '') for way in ('load_from', 'report', 'init_cfg', 'convert')),
    ('load_from', 'module._orig_mod.'), ('load_from', '_orig_mod.module.'),
    ('init_cfg', '_orig_mod.'), ('convert', '_orig_mod.')])
def test_good_weights_come_in(way, prefix, files, tmp_path):
    good = edit(torch.load(files.checkpoint), lambda tensors: [
        x.add_(1) for x in tensors.values() if x.is_floating_point()])
    torch.save(dict(good, state_dict={
        prefix + name: x for name, x in good['state_dict'].items()}), tmp_path / 'good.pth')
    model = WAYS[way](files, tmp_path / 'good.pth')
    loaded = torch.load(files.data / 'out.pth')['state_dict'] if model is None else \
        model.state_dict()
    names = [x for x in good['state_dict'] if way != 'init_cfg' or x.startswith('backbone.')]
    assert names and all(torch.equal(loaded[x], good['state_dict'][x]) for x in names)


def test_weights_under_the_name_of_another_codebase_are_sent_to_convert(files, tmp_path):
    path = tmp_path / 'official.pth'
    torch.save(dict(model=torch.load(files.checkpoint)['state_dict']), path)
    with pytest.raises(ConfigError, match=f'{path}.*run groupdetr convert'):
        load(files, path)


def test_a_part_of_a_model_is_taken_where_it_is_asked_for(files, tmp_path, capfd):
    checkpoint = tmp_path / 'part.pth'
    torch.save(edit(torch.load(files.checkpoint), shorten), checkpoint)
    runner = runner_of(files, load_from=str(checkpoint), allow_missing=True)
    before = runner.model.state_dict()['decoder.post_norm.weight'].clone()
    runner.load_or_resume()
    state_dict = runner.model.state_dict()
    assert torch.equal(state_dict['decoder.post_norm.weight'], before)
    output = capfd.readouterr()
    assert f'{len(state_dict) - 2} of the {len(state_dict)} tensors' in output.out + output.err
