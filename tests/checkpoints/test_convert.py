"""Checkpoints of other codebases become ours, ours become the stock detector, and nothing else
gets through."""
import argparse
import copy
import functools
import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders import build, detector_config, make_batch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS
from parity import golden
from parity.case import PARITY, Case
from running import run_tool

from groupdetr_mmdet.checkpoints import convert as conversion
from groupdetr_mmdet.checkpoints.convert import COCO_IDS
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.config import read_config

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


def to_detrex(name: str) -> str:
    """Name of the official code -> name of detrex."""
    name = name.replace('backbone.0.body.', 'backbone.')
    if name.startswith('backbone.') and 'layer' not in name:
        name = name.replace('backbone.', 'backbone.stem.')
    for stage in range(1, 5):
        name = name.replace(f'backbone.layer{stage}.', f'backbone.res{stage + 1}.')
    for i in range(1, 4):
        name = name.replace(f'.bn{i}.', f'.conv{i}.norm.')
        name = name.replace(f'.norm{i}.', f'.norms.{i - 1}.')
    name = name.replace('downsample.0', 'shortcut').replace('downsample.1', 'shortcut.norm')
    name = name.replace('decoder.norm.', 'decoder.post_norm_layer.')
    name = name.replace('linear1', 'ffns.0.layers.0.0').replace('linear2', 'ffns.0.layers.1')
    if 'encoder.' in name:
        return name.replace('self_attn', 'attentions.0.attn')
    name = name.replace('self_attn', 'attentions.0').replace('cross_attn', 'attentions.1')
    for old, new in dict(qcontent='query_content', kcontent='key_content', kpos='key_pos',
                         qpos_sine='query_pos_sine', qpos='query_pos', v='value').items():
        name = name.replace(f'.sa_{old}_proj', f'.attentions.0.{new}_proj')
        name = name.replace(f'.ca_{old}_proj', f'.attentions.1.{new}_proj')
    return name


def detrex_checkpoint() -> dict:
    model = {to_detrex(name): x for name, x in golden.official_state_dict(spec()).items()}
    return dict(model=model, trainer=dict(iteration=90000), iteration=90000)


def case_config(**kwargs) -> dict:
    config = spec()['config']
    return detector_config(**dict(dict(
        num_queries=N, num_query_groups=K, num_classes=config['num_classes'], width=256,
        num_heads=8, enc_layers=config['enc_layers'], dec_layers=config['dec_layers'],
        feedforward_channels=config['dim_feedforward'],
        base_channels=config['base_channels']), **kwargs))


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


@torch.no_grad()
def detections(config: dict, state_dict: dict) -> list:
    """Load strictly and detect."""
    model = build(config).eval()
    model.load_state_dict(state_dict, strict=True)
    inputs, samples = make_batch(num_classes=7)
    return [sample.pred_instances for sample in model.predict(inputs, samples, rescale=False)]


def assert_same(actual: list, expected: list, atol: float = 1e-6) -> None:
    for a, b in zip(actual, expected):
        assert a.labels.tolist() == b.labels.tolist()
        torch.testing.assert_close(a.scores, b.scores, atol=atol, rtol=0)
        torch.testing.assert_close(a.bboxes, b.bboxes, atol=atol * 96, rtol=0)


def save(checkpoint, path: Path) -> Path:
    torch.save(checkpoint, path)
    return path


# Into ours


@pytest.mark.parametrize('make, wrap', [
    (official_checkpoint, lambda c: c), (official_checkpoint, lambda c: c['model']),
    (detrex_checkpoint, lambda c: dict(state_dict=c['model'])),
    (detrex_checkpoint,
     lambda c: dict(c, model={f'module.{name}': x for name, x in c['model'].items()}))
], ids=['model', 'bare', 'state_dict', 'module'])
@torch.no_grad()
def test_converted_weights_predict_the_recorded_outputs(make, wrap, tmp_path):
    src, out = save(wrap(make()), tmp_path / 'src.pth'), tmp_path / 'out.pth'
    assert run_convert(src, out) == 0
    case = Case(CASE)
    for parameter in case.model.parameters():
        parameter.zero_()
    case.model.load_state_dict(torch.load(out)['state_dict'], strict=True)
    with golden.float64():
        logits, boxes = case.predict_layers()
        for layer in range(case.config['dec_layers']):
            assert_close(logits[layer], case.arrays[f'train_logits_{layer}'])
            assert_close(boxes[layer], case.arrays[f'train_boxes_{layer}'])
        logits, boxes = case.model.eval() and case.predict_layers()
    assert_close(logits[-1], case.arrays['eval_logits'])
    assert_close(boxes[-1], case.arrays['eval_boxes'])


def assert_close(actual, expected) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=1e-9, rtol=1e-9)


def test_the_report_says_what_was_found_and_names_every_tensor(tmp_path, capsys):
    src = save(official_checkpoint(), tmp_path / 'src.pth')
    assert run_convert(src, tmp_path / 'out.pth', '--verbose') == 0
    report = capsys.readouterr().out
    for words in ('official', 'ConditionalDETR', '3 x 20', 'num_query_groups=3',
                  str(tmp_path / 'out.pth')):
        assert words in report
    lines = report.splitlines()
    for name in list(spec()['shapes']) + list(ours()['state_dict']):
        assert any(name in re.split(r'\s+|: ', line) or f'-> {name}:' in line
                   for line in lines), name


def test_the_default_report_counts_every_tensor(tmp_path, capsys):
    src = save(detrex_checkpoint(), tmp_path / 'src.pth')
    run_convert(src, tmp_path / 'out.pth')
    counts = re.findall(r' -> .*: (\d+) ', capsys.readouterr().out)
    assert sum(map(int, counts)) == len(ours()['state_dict'])


def test_the_default_report_lists_what_changed_only(tmp_path, capsys):
    src = save(ours(), tmp_path / 'src.pth')
    run_convert(src, tmp_path / 'out.pth', num_query_groups=2)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if ' -> ' in line]
    assert lines == ['query_embedding -> same: 1 kept, first groups kept'.split(),
                     f'all others -> same: {len(ours()["state_dict"]) - 1} kept'.split()]


def full_size_checkpoint(depth: int, **args) -> dict:
    """Names and shapes of a published model, of zeros that take no memory until written."""
    shapes = {}
    for name, shape in spec()['shapes'].items():
        layer = re.match(r'(transformer\.(?:en|de)coder\.layers\.)(\d)(\..*)', name)
        if name.startswith('backbone.'):
            continue
        shape = [2048 if size == 64 else size for size in shape]
        if not layer:
            shapes[name] = shape
        elif int(layer[2]) == ('decoder' in name):  # the last layer stands for all others
            shapes.update({f'{layer[1]}{i}{layer[3]}': shape for i in range(int(layer[2]), 6)})
        else:
            shapes[name] = shape
    with torch.device('cpu'):
        resnet = MODELS.build(dict(type='mmdet.ResNet', depth=depth)).state_dict()
        tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
        tensors['input_proj.weight'] = torch.zeros(256, 2048, 1, 1)
        tensors['class_embed.weight'] = torch.zeros(91, 256)
        tensors['class_embed.bias'] = torch.zeros(91)
        tensors['query_embed.weight'] = torch.zeros(
            args.get('num_queries', 300) * args.get('group_detr', 1), 256)
    tensors.update((f'backbone.0.body.{name}', x) for name, x in resnet.items()
                   if not name.endswith('num_batches_tracked'))
    return dict(model=tensors, args=argparse.Namespace(**args))


@pytest.mark.parametrize(('depth', 'args', 'groups'), [
    (50, dict(num_queries=300, group_detr=11), 11),  # branch GroupDETR
    (101, dict(num_queries=300, dilation=True), 1),  # branch main
    (50, dict(), 1),
])
def test_published_models_are_recognized_and_cut_to_the_coco_classes(depth, args, groups):
    config = read_config(f'group_cond_detr_r{depth}_12e').model
    config.num_query_groups = groups
    if args.get('dilation'):
        config.backbone.type = 'DC5ResNet'
    converted = convert(full_size_checkpoint(depth, **args), config=config)
    report = '\n'.join(converted.report)
    assert f'{groups} x 300' in report and '91 COCO ids' in report
    assert ('DC5' in report) == args.get('dilation', False)
    assert converted.state_dict['bbox_head.fc_cls.weight'].shape == (80, 256)
    assert converted.state_dict[ROWS].shape == (groups * 300, 256)
    assert len(converted.meta['dataset_meta']['classes']) == 80


def test_91_rows_are_cut_by_the_ids_of_the_coco_categories():
    checkpoint = official_checkpoint()
    checkpoint['model']['class_embed.weight'] = torch.arange(91.)[:, None].expand(91, 256)
    checkpoint['model']['class_embed.bias'] = torch.arange(91.)
    converted = convert(checkpoint, config=case_config(num_classes=80))
    ids = converted.state_dict['bbox_head.fc_cls.bias'].tolist()
    assert converted.state_dict['bbox_head.fc_cls.weight'][:, 0].tolist() == ids == COCO_IDS
    names = converted.meta['dataset_meta']['classes']
    known = dict(person=1, train=7, bench=15, backpack=27, umbrella=28, handbag=31, skis=35,
                 bottle=44, cup=47, toilet=70, tv=72, sink=81, book=84, toothbrush=90)
    known['stop sign'], known['wine glass'], known['dining table'] = 13, 46, 67
    assert {name: ids[names.index(name)] for name in known} == known


# Between numbers of groups


def test_a_stock_checkpoint_becomes_a_warm_start(tmp_path):
    stock = build(case_config(num_query_groups=None))
    src = save(dict(meta={}, state_dict=stock.state_dict()), tmp_path / 'stock.pth')
    results = []
    for i, seed in enumerate((1, 1, 2)):
        out = tmp_path / f'{i}.pth'
        assert run_convert(src, out, '--seed', seed, num_query_groups=4) == 0
        results.append(torch.load(out)['state_dict'])
    first, again, other = (result[ROWS] for result in results)
    rows = stock.query_embedding.weight
    assert torch.equal(first[:N], rows) and torch.equal(first, again)
    assert not torch.equal(first, other)
    differences = first.view(4, N, -1)[1:] - rows
    assert differences.std().item() == pytest.approx(0.02 * rows.std().item(), rel=0.1)
    assert len({tuple(group[0].tolist()) for group in differences}) == 3
    assert all(torch.equal(results[0][name], x) for name, x in stock.state_dict().items()
               if name != ROWS)
    assert_same(detections(case_config(num_query_groups=4), results[0]),
                detections(case_config(num_query_groups=None), stock.state_dict()))


@pytest.mark.parametrize('groups', [1, 2, 3, 7])
def test_ours_gets_another_number_of_groups(groups):
    rows = ours()['state_dict'][ROWS]
    state_dict = convert(ours(), num_query_groups=groups).state_dict
    new = state_dict[ROWS].view(groups, N, -1)
    old = rows.view(K, N, -1)
    for group in range(groups):
        if group < K:
            assert torch.equal(new[group], old[group])
        else:
            difference = (new[group] - old[group % K]).abs().max()
            assert 0 < difference < 0.2 * rows.std()
    assert len(detections(case_config(num_query_groups=groups), state_dict)) == 2


@pytest.mark.parametrize('num_queries', [N, 600])
def test_the_config_in_a_file_tells_the_stock_detector_from_groups(num_queries):
    """Also where the rows could be groups, or the tensors were saved without their metadata."""
    stock = build(case_config(num_queries=num_queries, num_query_groups=None)).state_dict()
    cfg = f"import os\nmodel = dict(type='ConditionalDETR', num_queries={num_queries})"
    checkpoint = dict(meta=dict(cfg=cfg), state_dict=stock)
    config = case_config(num_queries=num_queries, num_query_groups=2)
    converted = convert(checkpoint, config=config)
    assert len(converted.state_dict[ROWS]) == 2 * num_queries
    assert torch.equal(converted.state_dict[ROWS][:num_queries], stock[ROWS])
    if num_queries > N:
        with pytest.raises(ConfigError, match="groups of 600 queries .by the file's config. and "
                           'CONFIG has model.num_queries=20.*--num-queries'):
            convert(checkpoint)


def test_the_config_in_a_file_says_the_groups():
    state_dict = dict(ours()['state_dict'])
    cfg = f"model = dict(type='GroupConditionalDETR', num_queries={N}, num_query_groups={K})"
    for meta in (dict(cfg=cfg), dict(cfg=cfg.replace(f', num_query_groups={K}', ''))):
        converted = convert(dict(meta=meta, state_dict=state_dict), num_query_groups=K + 1)
        assert torch.equal(converted.state_dict[ROWS][:K * N], state_dict[ROWS])
        assert len(converted.state_dict[ROWS]) == (K + 1) * N


def test_the_config_in_a_file_is_not_run(tmp_path):
    cfg = f"model = dict(type=open('{tmp_path / 'run'}', 'w'), num_query_groups={K})"
    assert convert(dict(ours(), meta=dict(cfg=cfg))).state_dict
    assert not (tmp_path / 'run').exists()


def test_an_option_corrects_what_the_file_says_wrongly():
    wrong = official_checkpoint(num_queries=K * N, group_detr=1)
    with pytest.raises(ConfigError, match="60 queries .by the file's args.*--num-queries"):
        convert(wrong)
    assert torch.equal(convert(wrong, num_queries=N).state_dict[ROWS], ours()['state_dict'][ROWS])
    with pytest.raises(ConfigError, match=f'groups of {K * N} queries .--num-queries. and CONFIG'):
        convert(official_checkpoint(), num_queries=K * N)


def test_training_state_stays_only_where_nothing_changed():
    checkpoint = dict(ours(), optimizer=dict(state={}), message_hub={})
    assert set(convert(checkpoint).state) == {'optimizer', 'message_hub'}
    assert not convert(checkpoint, num_query_groups=2).state
    assert not convert(checkpoint, publish=True).state
    assert not convert(checkpoint, to='mmdet').state


# Out to the stock detector


@pytest.mark.parametrize('group', range(K))
def test_the_stock_detector_finds_what_the_group_finds(group, tmp_path):
    src = save(official_checkpoint(), tmp_path / 'src.pth')
    assert run_convert(src, tmp_path / 'ours.pth') == 0
    assert run_convert(tmp_path / 'ours.pth', tmp_path / 'stock.pth', '--to', 'mmdet',
                       '--query-group', group) == 0
    stock = torch.load(tmp_path / 'stock.pth')['state_dict']
    found = detections(case_config(num_query_groups=None), stock)
    config = case_config()
    config['test_cfg']['query_group'] = group
    assert_same(found, detections(config, torch.load(tmp_path / 'ours.pth')['state_dict']))
    config['test_cfg']['query_group'] = (group + 1) % K
    other = detections(config, ours()['state_dict'])
    assert not torch.equal(found[0].scores, other[0].scores)


def test_the_config_of_another_class_is_left_out_and_the_way_back_is_found():
    meta = dict(cfg="model = dict(type='GroupConditionalDETR')", epoch=3)
    checkpoint = dict(ours(), meta=meta)
    assert convert(checkpoint, num_query_groups=2).meta == meta
    stock = convert(checkpoint, to='mmdet')
    assert stock.meta == dict(epoch=3)
    back = convert(dict(meta=stock.meta, state_dict=stock.state_dict), num_query_groups=4)
    assert torch.equal(back.state_dict[ROWS][:N], ours()['state_dict'][ROWS][:N])
    assert len(back.state_dict[ROWS]) == 4 * N


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


@pytest.mark.parametrize('key, make', [('ema_state', detrex_checkpoint),
                                       ('ema_model', official_checkpoint),
                                       ('model_ema', official_checkpoint)])
def test_publish_takes_the_averaged_weights_of_other_codebases(key, make):
    checkpoint = make()
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
    checkpoint = copy.deepcopy(official_checkpoint())
    edit(checkpoint['model'])
    return checkpoint


REFUSED = {
    'left over': (lambda m: m.update({'transformer.encoder.norm.weight': torch.ones(256)}),
                  ['1 left over', 'transformer.encoder.norm.weight']),
    'missing': (lambda m: [m.pop(name) for name in (
        'bbox_embed.layers.1.bias', 'transformer.decoder.layers.1.ca_v_proj.weight')],
                ['2 missing', 'bbox_head.reg_ffn.layers.1.bias',
                 'decoder.layers.1.cross_attn.v_proj.weight']),
    'shape': (lambda m: m.update({'input_proj.bias': torch.ones(255)}),
              ['1 of another shape', 'input_proj.bias: (255,), should be (256,)']),
    'rows': (lambda m: m.update({'query_embed.weight': torch.ones(59, 256)}),
             ['(59, 256)', 'model.num_queries=20']),
    'no head': (lambda m: [m.pop(name) for name in list(m) if 'class_embed' in name],
                ['bbox_head.fc_cls.weight']),
    'other model': (lambda m: [m.update({f'x.{name}': m.pop(name)}) for name in list(m)],
                    ['x.backbone.0.body', '--from']),
}


@pytest.mark.parametrize('fault', REFUSED)
def test_a_checkpoint_that_is_not_whole_is_refused(fault, tmp_path, capsys):
    edit, words = REFUSED[fault]
    out = tmp_path / 'out.pth'
    assert run_convert(save(change(edit), tmp_path / 'src.pth'), out) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    for word in words:
        assert word in error
    assert not out.exists()


def test_every_unfit_tensor_is_listed():
    checkpoint = change(lambda m: [m.pop(name) for name in list(m) if '.encoder.' in name])
    checkpoint['model'].update((f'extra.{i}.weight', torch.ones(1)) for i in range(30))
    with pytest.raises(ConfigError) as error:
        convert(checkpoint)
    lost = [name for name in ours()['state_dict'] if name.startswith('encoder.')]
    assert all(name in str(error.value) for name in lost)
    assert all(f'extra.{i}.weight' in str(error.value) for i in range(30))
    assert f'{len(lost)} missing' in str(error.value) and 'another shape' not in str(error.value)


@pytest.mark.parametrize(('options', 'words'), [
    (['--from', 'detrex'], ['backbone.0.body.conv1.weight']),
    (['--num-queries', 0], ['--num-queries 0']),
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


def test_layers_that_are_missing_as_a_whole_are_noticed():
    with pytest.raises(ConfigError, match=r'decoder\.layers\.2\.norms'):
        convert(official_checkpoint(), config=case_config(dec_layers=3))


def test_the_stock_detector_takes_256_channels_only():
    config = detector_config()
    narrow = dict(state_dict=build(config).state_dict())
    with pytest.raises(ConfigError, match='32 channels'):
        convert(narrow, config=config, to='mmdet')
    assert convert(narrow, config=config).state_dict[ROWS].shape == (30, 32)


def test_weights_that_are_no_numbers_are_refused():
    checkpoint = change(lambda m: m['class_embed.bias'].fill_(float('nan')))
    with pytest.raises(ConfigError, match='SRC has NaN.*bbox_head.fc_cls.bias and 0 other'):
        convert(checkpoint)


def test_the_source_is_never_overwritten(tmp_path, capsys):
    src = save(official_checkpoint(), tmp_path / 'src.pth')
    before = src.read_bytes()
    assert run_convert(src, tmp_path / '.' / 'src.pth') == 2
    assert 'is SRC itself' in capsys.readouterr().err and src.read_bytes() == before


def test_a_missing_file_and_one_without_tensors_get_a_sentence(tmp_path, capsys):
    assert run_convert(tmp_path / 'no.pth', tmp_path / 'out.pth') == 2
    assert 'no.pth does not exist' in capsys.readouterr().err
    src = save(dict(epoch=1), tmp_path / 'src.pth')
    assert run_convert(src, tmp_path / 'out.pth') == 2
    assert 'no state dict' in capsys.readouterr().err
