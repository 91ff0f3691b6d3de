"""Checkpoints of the official code convert to ours, and ours to the stock detector."""
import argparse
import copy
import functools
import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import build, detector_config
from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from parity import golden
from parity.case import PARITY, from_official, model_config
from running import run_tool
from tiny import tiny_config

from groupdetr_mmdet.checkpoints import convert as conversion
from groupdetr_mmdet.checkpoints.convert import COCO_IDS
from groupdetr_mmdet.checkpoints.stock import stock_config
from groupdetr_mmdet.errors import ConfigError

CASE = PARITY / 'case_A'
N, K = 20, 3  # of the case
ROWS = 'query_embedding.weight'


@functools.lru_cache
def spec():
    return golden.load(CASE)[0]


def official_checkpoint(**args) -> dict:
    """The case as the official code saves it."""
    return dict(model=golden.official_state_dict(spec()), optimizer=dict(state={}), epoch=11,
                lr_scheduler=dict(_last_lr=[1e-5]),
                args=argparse.Namespace(**dict(dict(num_queries=N, group_detr=K), **args)))


def case_config(**kwargs) -> dict:
    config = dict(spec()['config'], num_groups=kwargs.pop('num_query_groups', K))
    return model_config(dict(config, **kwargs))


def convert(checkpoint, num_query_groups=K, config=None, **kwargs):
    """Convert to the case's detector, or to that of another config."""
    config = config or case_config(num_query_groups=num_query_groups)
    return conversion.convert(checkpoint, ConfigDict(copy.deepcopy(config)), **kwargs)


def run_convert(src, out, *options, num_query_groups=K) -> int:
    """Run the command, with a config file beside the result."""
    config = Path(str(out)).parent / f'case_{num_query_groups}.py'
    if config.parent.is_dir():
        Config(dict(model=case_config(num_query_groups=num_query_groups))).dump(config)
    return run_tool('convert_checkpoint', config, src, out, *options)


@functools.lru_cache
def ours() -> dict:
    """The case as a checkpoint of ours."""
    converted = convert(official_checkpoint())
    return dict(meta=converted.meta, state_dict=converted.state_dict)


def save(checkpoint, path: Path) -> Path:
    torch.save(checkpoint, path)
    return path


# Into ours


@pytest.mark.parametrize('wrap', [
    lambda c: c, lambda c: c['model'], lambda c: dict(state_dict=c['model']),
    lambda c: dict(c, model={f'module.{name}': x for name, x in c['model'].items()})
], ids=['model', 'bare', 'state_dict', 'module'])
def test_official_weights_get_the_names_with_which_they_predict_the_recorded_outputs(
        wrap, tmp_path):
    """Tests/parity has the predictions."""
    src, out = save(wrap(official_checkpoint()), tmp_path / 'src.pth'), tmp_path / 'out.pth'
    assert run_convert(src, out) == 0
    found, expected = torch.load(out)['state_dict'], from_official(official_checkpoint()['model'])
    build(case_config()).load_state_dict(found, strict=True)
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_the_report_names_what_was_found_and_every_tensor(tmp_path, capsys):
    src = save(official_checkpoint(), tmp_path / 'src.pth')
    assert run_convert(src, tmp_path / 'out.pth', '--verbose') == 0
    report = capsys.readouterr().out
    assert all(x in report for x in ('official', 'ConditionalDETR', '3 x 20'))
    assert {*spec()['shapes'], *ours()['state_dict']} <= {*re.split(r'\s+|: ?', report)}


def test_every_data_set_of_the_stock_config_has_the_class_names(tmp_path):
    cfg = tiny_config(tmp_path, width=256)
    cfg.test_dataloader.dataset = dict(
        type='ConcatDataset', datasets=2 * [cfg.test_dataloader.dataset])
    dataset = stock_config(cfg, ['a', 'b', 'c']).test_dataloader.dataset
    assert 'metainfo' not in dataset
    assert [x.metainfo.classes for x in dataset.datasets] == 2 * [('a', 'b', 'c')]


def test_91_rows_are_cut_by_the_ids_of_the_coco_categories():
    checkpoint = official_checkpoint(dilation=True)
    checkpoint['model']['class_embed.weight'] = torch.arange(91.)[:, None].expand(91, 256)
    checkpoint['model']['class_embed.bias'] = torch.arange(91.)
    converted = convert(checkpoint, config=case_config(num_classes=80))
    report = '\n'.join(converted.report)
    assert '3 x 20' in report and '91 COCO ids' in report and 'DC5' in report
    ids = converted.state_dict['bbox_head.fc_cls.bias'].tolist()
    assert converted.state_dict['bbox_head.fc_cls.weight'][:, 0].tolist() == ids == COCO_IDS
    names = converted.meta['dataset_meta']['classes']
    known = {'person': 1, 'stop sign': 13, 'umbrella': 28, 'handbag': 31, 'wine glass': 46,
             'dining table': 67, 'toilet': 70, 'tv': 72, 'book': 84, 'toothbrush': 90}
    assert {name: ids[names.index(name)] for name in known} == known


# Between numbers of groups


@pytest.mark.parametrize('num_queries', [N, 600])
def test_the_config_in_a_file_tells_the_stock_detector_from_groups(num_queries):
    """Also where the rows could be groups, or the tensors were saved without their metadata."""
    stock = build(case_config(num_queries=num_queries, num_query_groups=None)).state_dict()
    cfg = f"import os\nmodel = dict(type='ConditionalDETR', num_queries={num_queries})"
    checkpoint = dict(meta=dict(cfg=cfg), state_dict=stock)
    rows = convert(checkpoint, config=case_config(
        num_queries=num_queries, num_query_groups=2)).state_dict[ROWS]
    assert len(rows) == 2 * num_queries and torch.equal(rows[:num_queries], stock[ROWS])
    if num_queries > N:
        with pytest.raises(ConfigError, match="600 queries .by the file's config.*num_queries=20"):
            convert(checkpoint)


@pytest.mark.parametrize('groups', [f', num_query_groups={K}', ''])
def test_the_config_in_a_file_tells_the_groups(groups):
    cfg = f"model = dict(type='GroupConditionalDETR', num_queries={N}{groups})"
    state_dict = dict(ours()['state_dict'])
    rows = convert(dict(meta=dict(cfg=cfg), state_dict=state_dict), K + 1).state_dict[ROWS]
    assert torch.equal(rows[:K * N], state_dict[ROWS]) and len(rows) == (K + 1) * N


def test_the_config_in_a_file_is_not_run(tmp_path):
    cfg = f"model = dict(type=open('{tmp_path / 'run'}', 'w'), num_query_groups={K})"
    assert convert(dict(ours(), meta=dict(cfg=cfg))).state_dict
    assert not (tmp_path / 'run').exists()


def test_an_option_corrects_what_the_file_says_wrongly():
    wrong = official_checkpoint(num_queries=K * N, group_detr=1)
    with pytest.raises(ConfigError, match="60 queries .by the file's args.*--num-queries"):
        convert(wrong)
    assert torch.equal(convert(wrong, num_queries=N).state_dict[ROWS], ours()['state_dict'][ROWS])
    with pytest.raises(ConfigError, match=f'groups of {K * N} queries .--num-queries.'):
        convert(official_checkpoint(), num_queries=K * N)


def test_training_state_stays_only_where_nothing_changed():
    checkpoint = dict(ours(), optimizer=dict(state={}), message_hub={})
    assert set(convert(checkpoint).state) == {'optimizer', 'message_hub'}
    assert not convert(checkpoint, num_query_groups=2).state
    assert not convert(checkpoint, publish=True).state
    assert not convert(checkpoint, to='mmdet').state


# Out to the stock detector


def test_the_config_of_another_class_is_left_out_and_the_way_back_is_found():
    meta = dict(cfg="model = dict(type='GroupConditionalDETR')", epoch=3)
    checkpoint = dict(ours(), meta=meta)
    assert convert(checkpoint).meta == meta
    assert convert(checkpoint, num_query_groups=2).meta == dict(epoch=3)
    stock = convert(checkpoint, to='mmdet')
    assert stock.meta == dict(epoch=3)
    rows = convert(dict(meta=stock.meta, state_dict=stock.state_dict), 4).state_dict[ROWS]
    assert torch.equal(rows[:N], ours()['state_dict'][ROWS][:N]) and len(rows) == 4 * N


# Publishing and other formats


def test_publish_keeps_the_averaged_weights_alone(tmp_path):
    model = build(case_config())
    model.load_state_dict(ours()['state_dict'])
    runner = SimpleNamespace(model=model)
    hook = EMAHook(momentum=0.5)
    hook.before_run(runner)
    hook.ema_model.update_parameters(model)  # the first one copies
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    hook.ema_model.update_parameters(model)
    checkpoint = dict(meta=dict(epoch=1), state_dict=model.state_dict(), optimizer=dict(state={}),
                      message_hub=dict(log=HistoryBuffer([1.], [1])), param_schedulers=[])
    hook.before_save_checkpoint(runner, checkpoint)
    src = save(checkpoint, tmp_path / 'src.pth')
    assert run_convert(src, tmp_path / 'det.pth', '--publish') == 0
    published, = tmp_path.glob('det-*.pth')
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert published.name == f'det-{digest[:8]}.pth'
    content = torch.load(published)
    assert set(content) == {'meta', 'state_dict'} and content['meta']['epoch'] == 1
    averaged = {name: x + 0.5 for name, x in ours()['state_dict'].items()}
    for name in (ROWS, 'bbox_head.fc_reg.weight', 'backbone.conv1.weight'):
        torch.testing.assert_close(content['state_dict'][name], averaged[name])


@pytest.mark.parametrize('key', ['ema_state', 'ema_model', 'model_ema'])
def test_publish_takes_the_averaged_weights_of_other_codebases(key):
    checkpoint = official_checkpoint()
    checkpoint[key] = {f'module.{name}': x + 1 for name, x in checkpoint['model'].items()}
    plain = convert(checkpoint).state_dict[ROWS]
    averaged = convert(checkpoint, publish=True).state_dict[ROWS]
    assert torch.equal(plain + 1, averaged)


def test_safetensors_keep_tensors_groups_and_classes(tmp_path):
    names = ['a', 'b', 'c', 'd', 'e', 'f', 'g']
    src = save(dict(ours(), meta=dict(dataset_meta=dict(classes=names))), tmp_path / 'src.pth')
    there, back = tmp_path / 'there.safetensors', tmp_path / 'back.pth'
    assert run_convert(src, there) == 0
    assert run_convert(there, back) == 0
    result = torch.load(back)
    assert result['meta']['dataset_meta']['classes'] == names
    assert result['state_dict']._metadata['']['num_queries'] == N
    assert set(result['state_dict']) == set(ours()['state_dict'])
    assert all(torch.equal(x, ours()['state_dict'][name])
               for name, x in result['state_dict'].items())


# Refusals


def change(edit):
    """An official checkpoint after an edit of its state dict."""
    checkpoint = official_checkpoint()
    edit(checkpoint['model'])
    return checkpoint


def loses_the_encoder(model: dict) -> None:
    for name in [x for x in model if '.encoder.' in x]:
        del model[name]
    model.update((f'extra.{i}.weight', torch.ones(1)) for i in range(30))


@pytest.mark.parametrize('edit, words', [
    (loses_the_encoder, ['30 left over', *(f'extra.{i}.weight' for i in range(30)), 'missing',
                         'encoder.layers.0.self_attn.attn.in_proj_weight']),
    (lambda m: m.update({'input_proj.bias': torch.ones(255)}),
     ['1 of another shape', 'input_proj.bias: (255,), should be (256,)']),
    (lambda m: m.update({'query_embed.weight': torch.ones(59, 256)}),
     ['(59, 256)', 'model.num_queries=20']),
    (lambda m: [m.update({f'x.{name}': m.pop(name)}) for name in list(m)],
     ['x.backbone.0.body', '--from'])])
def test_a_checkpoint_that_does_not_fit_is_refused_by_its_tensors(edit, words):
    with pytest.raises(ConfigError) as error:
        convert(change(edit))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(('options', 'words'), [
    (['--from', 'detrex'], ['backbone.0.body.conv1.weight']),
    (['--num-queries', 0], ['--num-queries', '0']),
    (['--cfg-options', 'model.num_query_groups=0'], ['num_query_groups=0']),
    (['--cfg-options', 'model.type=ConditionalDETR'], ['model.type=ConditionalDETR']),
    (['--query-group', 1], ['--query-group 1', '--to mmdet']),
    (['--to', 'mmdet', '--query-group', K], [f'--query-group {K}', '0 to 2']),
])
def test_options_that_do_not_fit_are_refused(options, words, tmp_path, capsys):
    src, out = save(official_checkpoint(), tmp_path / 'src.pth'), tmp_path / 'out.pth'
    assert run_convert(src, out, *options) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not out.exists()


def test_the_stock_detector_takes_256_channels_only():
    config = detector_config()
    narrow = dict(state_dict=build(config).state_dict())
    with pytest.raises(ConfigError, match='32 channels'):
        convert(narrow, config=config, to='mmdet')
    assert convert(narrow, config=config).state_dict[ROWS].shape == (30, 32)


def test_the_source_is_never_overwritten(tmp_path, capsys):
    src = save(official_checkpoint(), tmp_path / 'src.pth')
    before = src.read_bytes()
    assert run_convert(src, tmp_path / '.' / 'src.pth') == 2
    assert 'is SRC itself' in capsys.readouterr().err and src.read_bytes() == before
