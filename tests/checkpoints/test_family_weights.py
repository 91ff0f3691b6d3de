"""Checkpoints of every family come in, from mmdet, detrex and their authors, and go out again."""
import copy
import functools
import re

import pytest
import torch
from builders import build, make_batch, perturbed
from family_builders import ALL, STOCK, config_of
from mask_builders import mask2former_config
from mmengine.config import ConfigDict

from groupdetr_mmdet.checkpoints.convert import convert
from groupdetr_mmdet.checkpoints.names import CONFIGS, recognize, rename
from groupdetr_mmdet.checkpoints.stock import build_without_memory, stock_model
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.config import read_config

K = 3
NAMES = dict(  # of what a file holds
    STOCK, dn='DNDETR', mask2former='Mask2Former', two_stage='two-stage DeformableDETR',
    tied_two_stage='two-stage DeformableDETR')
OURS_ALONE = ('dn', 'dab_deformable')  # mmdet has no detector of these
OF_MMDET = [family for family in ALL if family not in OURS_ALONE]
config_of = functools.partial(config_of, paired=True)


def weights(config) -> dict:
    """Of a model in which no two tensors are equal."""
    return perturbed(build(config)).state_dict()


def load(config, state_dict: dict) -> torch.nn.Module:
    model = build(config, seed=1).eval()
    model.load_state_dict(state_dict, strict=True)
    return model


@torch.no_grad()
def detect(model) -> list:
    return [x.pred_instances for x in model.predict(*make_batch(), rescale=False)]


@pytest.mark.parametrize('family', OF_MMDET)
def test_a_stock_checkpoint_comes_in(family):
    stock = weights(config_of(family, None))
    converted = convert(dict(state_dict=stock, meta={}), config_of(family))
    model = load(config_of(family), converted.state_dict)
    assert f': {NAMES[family]} of mmdet (mmdet)' in converted.report[0]
    assert all(torch.equal(x, stock[name]) for name, x in model.stock_state_dict(0).items())
    first = next(x for _, x in model.group_parameters()).chunk(K)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    name, _ = next(model.group_parameters())
    again, other = (convert(dict(state_dict=stock), config_of(family), seed=seed).state_dict[name]
                    for seed in (0, 1))
    assert torch.equal(again, converted.state_dict[name]) and not torch.equal(again, other)


@pytest.mark.parametrize('family', OF_MMDET)
def test_a_group_goes_out_as_the_stock_detector_and_comes_back(family):
    config = config_of(family)
    ours, before = weights(config), copy.deepcopy(config)
    converted = convert(dict(state_dict=ours), config, to='mmdet', query_group=1)
    assert config == before
    stock = load(stock_model(config), converted.state_dict)
    assert type(stock).__name__ == NAMES[family].split()[-1]
    config['test_cfg']['query_group'] = 1
    for mine, theirs in zip(detect(load(config, ours)), detect(stock)):
        assert torch.equal(mine.labels, theirs.labels) and len(mine)
        torch.testing.assert_close(mine.bboxes, theirs.bboxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(mine.scores, theirs.scores, atol=1e-5, rtol=0)
    back = convert(dict(state_dict=converted.state_dict), config_of(family, 1))
    assert all(torch.equal(back.state_dict[name], x) for name, x in converted.state_dict.items())


@pytest.mark.parametrize('family', ALL)
def test_ours_gets_another_number_of_groups(family):
    ours = weights(config_of(family, 2))
    before = load(config_of(family, 2), ours)
    after = load(config_of(family, 4), convert(
        dict(state_dict=ours), config_of(family, 4)).state_dict)
    for group in range(2):
        torch.testing.assert_close(after.stock_state_dict(group), before.stock_state_dict(group),
                                   atol=0, rtol=0)


# Names of other codebases, from mmdet's: replacements in order, then at the start of names

COMMON = [(r'^backbone\.', 'backbone.0.body.'), (r'\.norms\.0\.', '.norm1.'),
          (r'\.norms\.1\.', '.norm2.'), (r'\.norms\.2\.', '.norm3.'),
          (r'\.ffn\.layers\.0\.0\.', '.linear1.'), (r'\.ffn\.layers\.1\.', '.linear2.'),
          (r'\.ffn\.layers\.0\.1\.', '.activation.')]
DETREX = [(r'^backbone\.(conv1|bn1)', r'backbone.stem.\1'),
          *((rf'^backbone\.layer{i}\.', f'backbone.res{i + 1}.') for i in range(1, 5)),
          (r'^(backbone.*)\bbn(\d)', r'\1conv\2.norm'),
          (r'^(backbone.*)downsample\.0', r'\1shortcut'),
          (r'^(backbone.*)downsample\.1', r'\1shortcut.norm'),
          (r'\.self_attn\.', '.attentions.0.'), (r'\.cross_attn\.', '.attentions.1.'),
          (r'\.ffn\.', '.ffns.0.')]
BRANCHES = [(rf'^bbox_head\.reg_branches\.([01])\.{2 * i}\.', rf'bbox_embed.\1.layers.{i}.')
            for i in range(3)]
DINO = [(r'^query_embedding\b', 'transformer.tgt_embed'),
        (r'^memory_trans_fc\b', 'transformer.enc_output'),
        (r'^memory_trans_norm\b', 'transformer.enc_output_norm'),
        (r'^dn_query_generator\.label_embedding\b', 'label_enc')]
CONDITIONAL = [
    (r'^neck\.convs\.0\.conv\b', 'input_proj'), (r'^bbox_head\.fc_cls\b', 'class_embed'),
    (r'^bbox_head\.reg_ffn\.layers\.0\.0\b', 'bbox_embed.layers.0'),
    (r'^bbox_head\.reg_ffn\.layers\.1\b', 'bbox_embed.layers.1'),
    (r'^patterns\b', 'transformer.patterns')]
RULES = {
    ('official', 'dino'): [
        (r'^(decoder\.layers\.\d+)\.norms\.0', r'\1.norm2'),
        (r'^(decoder\.layers\.\d+)\.norms\.1', r'\1.norm1'), *COMMON,
        (r'self_attn\.attn\.', 'self_attn.'), (r'^neck\.convs\.(\d)\.conv', r'input_proj.\1.0'),
        (r'^neck\.convs\.(\d)\.gn', r'input_proj.\1.1'),
        (r'^neck\.extra_convs\.0\.conv', 'input_proj.2.0'),
        (r'^neck\.extra_convs\.0\.gn', 'input_proj.2.1'),
        (r'^bbox_head\.cls_branches\.2', 'transformer.enc_out_class_embed'),
        (r'^bbox_head\.cls_branches\.', 'class_embed.'),
        *((rf'^bbox_head\.reg_branches\.2\.{2 * i}\.',
           f'transformer.enc_out_bbox_embed.layers.{i}.') for i in range(3)),
        *BRANCHES, *DINO, (r'^level_embed\b', 'transformer.level_embed')],
    ('official', ''): [
        *COMMON, (r'^(encoder\..*)self_attn\.attn\.', r'\1self_attn.'),
        (r'self_attn\.(?!out_proj)(\w+_proj\.)', r'sa_\1'),
        (r'cross_attn\.(?!out_proj)(\w+_proj\.)', r'ca_\1'),
        *CONDITIONAL, (r'^decoder\.post_norm\b', 'decoder.norm'),
        (r'^dn_query_generator\.label_embedding\b', 'label_enc')],
    ('detrex', 'dino'): [
        *DETREX, (r'^(neck\..*)\.gn\.', r'\1.norm.'),
        *((rf'^bbox_head\.reg_branches\.(\d)\.{2 * i}\.', rf'bbox_embed.\1.layers.{i}.')
          for i in range(3)),
        (r'^bbox_head\.cls_branches\b', 'class_embed'), *DINO,
        (r'^level_embed\b', 'transformer.level_embeds')],
    ('detrex', ''): [
        *DETREX, *((rf'(attentions\.\d)\.{mine}', rf'\1.{theirs}') for mine, theirs in (
            ('q(content|pos)', r'query_\2'), ('k(content|pos)', r'key_\2'), ('v_', 'value_'))),
        *CONDITIONAL, (r'^decoder\.post_norm\b', 'decoder.post_norm_layer'),
        (r'^dn_query_generator\.label_embedding\b', 'denoising_generator.label_encoder')],
}
LAST = dict(conditional=('bbox_embed.layers.2', 'query_embed', 'query_embed'))
OTHERS = ('bbox_embed', 'refpoint_embed', 'anchor_box_embed')  # fc_reg, query_embedding of both


def foreign(source: str, family: str, stock: dict) -> dict:
    """A stock detector's weights as another codebase saves them, with what it holds twice."""
    fc_reg, *queries = LAST.get(family, OTHERS)
    rules = [*RULES[source, 'dino' if family == 'dino' else ''],
             (r'^bbox_head\.fc_reg\b', fc_reg),
             (r'^query_embedding\b', queries[source == 'detrex']),
             (r'^(encoder|decoder)\.', r'transformer.\1.')]
    names = {name: rename(name, rules) for name in stock
             if not name.endswith('num_batches_tracked')}
    tensors = {theirs: stock[name] for name, theirs in names.items()}
    assert len(tensors) == len(names)
    for name in [x for x in tensors if re.match(r'(class|bbox)_embed\.', x)]:
        if family == 'dino' or family != 'conditional' and name.startswith('bbox_embed.'):
            tensors[f'transformer.decoder.{name}'] = tensors[name]
    return tensors


def dino_with_an_extra_level(num_query_groups=None) -> ConfigDict:
    config = config_of('dino', num_query_groups)
    config['num_feature_levels'] = 3
    config['neck']['num_outs'] = 3
    for coder in ('encoder', 'decoder'):
        key = dict(encoder='self_attn_cfg', decoder='cross_attn_cfg')[coder]
        config[coder]['layer_cfg'][key]['num_levels'] = 3
    return config


@pytest.mark.parametrize('family', ['conditional', 'dab', 'dab_patterns', 'dn', 'dino'])
@pytest.mark.parametrize('source', ['official', 'detrex'])
def test_names_of_other_codebases_come_back_bit_for_bit(source, family):
    make = dino_with_an_extra_level if family == 'dino' else lambda k: config_of(family, k)
    stock = weights(make(None))
    tensors = foreign(source, family, stock)
    converted = convert(dict(model=tensors), make(K))
    assert f': {NAMES[family]} of ' in converted.report[0]
    assert f'({source})' in converted.report[0]
    kept = load(make(K), converted.state_dict).stock_state_dict(0)
    assert kept.keys() == stock.keys()
    assert all(torch.equal(kept[name], x) for name, x in stock.items())
    if family == 'dn':
        return
    back = convert(dict(model=tensors), make(1), to='mmdet')
    assert all(torch.equal(back.state_dict[name], x) for name, x in stock.items())


@pytest.mark.parametrize('family', ['dn', 'dino'])
def test_rows_of_coco_ids_are_cut_in_every_class_layer(family):
    """The official DINO's label embedding has one row more than its 91 classes, unused."""
    config = config_of(family, None)
    config['bbox_head']['num_classes'] = 91
    tensors = foreign('official', family, weights(config))
    label = tensors['label_enc.weight']
    if family == 'dino':
        tensors['label_enc.weight'] = torch.cat([label, label[:1]])
    target = config_of(family, 1)
    target['bbox_head']['num_classes'] = 80
    state_dict = convert(dict(model=tensors), target).state_dict
    ours, theirs = ('bbox_head.fc_cls.bias', 'class_embed.bias') if family == 'dn' else (
        'bbox_head.cls_branches.0.bias', 'class_embed.0.bias')
    assert torch.equal(state_dict[ours][[0, 11, 79]], tensors[theirs][[1, 13, 90]])
    embedding = state_dict['dn_query_generator.label_embedding.weight']
    assert torch.equal(embedding[11], label[13]) and len(embedding) == 80 + (family == 'dn')
    if family == 'dn':
        assert torch.equal(embedding[80], label[91]), 'the content of matching queries'


EACH = ('conditional', 'dab', 'dn', 'deformable', 'two_stage', 'dab_deformable', 'dino',
        'mask2former')


@pytest.mark.parametrize('ours, theirs', list(zip(EACH, EACH[1:] + EACH[:1])))
def test_a_config_of_another_family_is_refused_by_both_names(ours, theirs):
    stock = weights(config_of(theirs, None))
    with pytest.raises(ConfigError, match=f'SRC holds a {NAMES[theirs]} and CONFIG builds a '
                       f'{NAMES[ours]}.*{CONFIGS[NAMES[theirs]]}'):
        convert(dict(state_dict=stock), config_of(ours))


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_the_config_that_is_named_fits(name):
    model = read_config(CONFIGS[name]).model
    assert recognize(build_without_memory(model).state_dict()) == ('mmdet', name)


def test_names_that_are_not_known_are_refused():
    tensors = {'refpoint_embed.weight': torch.ones(6, 4), 'tgt_embed.weight': torch.ones(6, 32)}
    with pytest.raises(ConfigError, match='SRC holds a DABDeformableDETR'):
        convert(dict(model=tensors), config_of('dab'))
    with pytest.raises(ConfigError, match='--from official: .* DABDeformableDETR'):
        convert(dict(model=tensors), config_of('dab_deformable'))


def test_other_classes_are_refused():
    source = mask2former_config(None, num_things=7)
    with pytest.raises(ConfigError, match='SRC has 7 classes and CONFIG 5.*load_from'):
        convert(dict(state_dict=weights(source)), config_of('mask2former'))


def test_layers_that_the_detector_shares_must_be_equal():
    """Else a detector with box refinement would become another without it, silently."""
    refined = weights(config_of('refine', None))
    with pytest.raises(ConfigError, match='bbox_head.cls_branches.0.weight and '
                       'bbox_head.cls_branches.1.weight.*with_box_refine=True'):
        convert(dict(state_dict=refined), config_of('deformable'))


def test_tensors_held_twice_must_be_equal():
    tensors = foreign('official', 'dab', weights(config_of('dab', None)))
    tensors['transformer.decoder.bbox_embed.layers.0.bias'] = torch.zeros(32)
    with pytest.raises(ConfigError, match='both become bbox_head.fc_reg.layers.0.bias'):
        convert(dict(model=tensors), config_of('dab'))


@pytest.mark.parametrize('family', OURS_ALONE)
def test_what_mmdet_does_not_have_stays_here(family):
    config = config_of(family)
    with pytest.raises(ConfigError, match='--to mmdet: mmdet has no class'):
        convert(dict(state_dict=weights(config)), config, to='mmdet')
