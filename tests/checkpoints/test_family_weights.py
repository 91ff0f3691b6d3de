"""Checkpoints of every family come in, from mmdet, detrex and their authors, and go out again."""
import copy
import re

import pytest
import torch
from builders import build, make_batch, perturbed
from family_builders import FAMILIES as BOX_FAMILIES
from family_builders import ONE_WIDTH, STOCK, family_config
from mask_builders import mask2former_config
from mmengine.config import ConfigDict

from groupdetr_mmdet.checkpoints.convert import convert
from groupdetr_mmdet.checkpoints.names import CONFIGS, recognize
from groupdetr_mmdet.checkpoints.stock import build_without_memory, stock_model
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.config import read_config

K = 3
NAMES = dict(  # of what a file holds
    STOCK, dn='DNDETR', mask2former='Mask2Former', two_stage='two-stage DeformableDETR',
    tied_two_stage='two-stage DeformableDETR')
FAMILIES = (*BOX_FAMILIES, 'mask2former')
OURS_ALONE = ('dn', 'dab_deformable')  # mmdet has no detector of these
OF_MMDET = [family for family in FAMILIES if family not in OURS_ALONE]


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def config_of(family: str, num_query_groups=K) -> ConfigDict:
    if family == 'mask2former':
        return mask2former_config(num_query_groups)
    return ConfigDict(family_config(family, num_query_groups, width=ONE_WIDTH.get(family, 32)))


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
    other = convert(dict(state_dict=stock), config_of(family), seed=1).state_dict
    name, _ = next(model.group_parameters())
    assert not torch.equal(other[name], converted.state_dict[name])


@pytest.mark.parametrize('group', [0, 1])
@pytest.mark.parametrize('family', OF_MMDET)
def test_a_group_goes_out_as_the_stock_detector_and_comes_back(family, group):
    config = config_of(family)
    ours = weights(config)
    converted = convert(dict(state_dict=ours), config, to='mmdet', query_group=group)
    stock = load(stock_model(config), converted.state_dict)
    assert type(stock).__name__ == NAMES[family].split()[-1]
    config['test_cfg']['query_group'] = group
    for mine, theirs in zip(detect(load(config, ours)), detect(stock)):
        assert torch.equal(mine.labels, theirs.labels) and len(mine)
        torch.testing.assert_close(mine.bboxes, theirs.bboxes, atol=1e-3, rtol=0)
        torch.testing.assert_close(mine.scores, theirs.scores, atol=1e-5, rtol=0)
    back = convert(dict(state_dict=converted.state_dict), config_of(family, 1))
    assert all(torch.equal(back.state_dict[name], x) for name, x in converted.state_dict.items())


@pytest.mark.parametrize('old, new', [(2, 4), (3, 2), (3, 3)])
def test_ours_gets_another_number_of_groups(family, old, new):
    ours = weights(config_of(family, old))
    checkpoint = dict(state_dict=ours, optimizer=dict(state={}))
    converted = convert(checkpoint, config_of(family, new))
    assert f'{old} x 6' in '\n'.join(converted.report)
    assert bool(converted.state) == (old == new)
    before, after = load(config_of(family, old), ours), load(config_of(family, new),
                                                             converted.state_dict)
    for group in range(min(old, new)):
        kept = after.stock_state_dict(group)
        assert all(torch.equal(x, kept[name]) for name, x in
                   before.stock_state_dict(group).items())


def test_more_groups_than_the_file_has_cannot_be_asked_for(family):
    config = config_of(family)
    with pytest.raises(ConfigError, match='--query-group 3 is not one of the groups: choose 0 to'):
        convert(dict(state_dict=weights(config)), config, to='mmdet', query_group=K)


# Names of other codebases, written out from mmdet's

CONDITIONAL_ATTENTION = [
    ('qcontent', 'query_content'), ('kcontent', 'key_content'), ('kpos', 'key_pos'),
    ('qpos_sine', 'query_pos_sine'), ('qpos', 'query_pos'), ('v', 'value')]


def official_name(name: str, family: str) -> str:
    name = re.sub(r'^backbone\.', 'backbone.0.body.', name)
    if family == 'dino':
        name = re.sub(r'^(decoder\.layers\.\d+)\.norms\.0', r'\1.norm2', name)
        name = re.sub(r'^(decoder\.layers\.\d+)\.norms\.1', r'\1.norm1', name)
        name = name.replace('self_attn.attn.', 'self_attn.')
        name = re.sub(r'neck\.convs\.(\d)\.conv', r'input_proj.\1.0', name)
        name = re.sub(r'neck\.convs\.(\d)\.gn', r'input_proj.\1.1', name)
        name = name.replace('neck.extra_convs.0.conv', 'input_proj.2.0')
        name = name.replace('neck.extra_convs.0.gn', 'input_proj.2.1')
        name = re.sub(r'bbox_head\.cls_branches\.2', 'transformer.enc_out_class_embed', name)
        name = re.sub(r'bbox_head\.cls_branches\.', 'class_embed.', name)
        for i in range(3):
            name = re.sub(rf'bbox_head\.reg_branches\.2\.{2 * i}\.',
                          f'transformer.enc_out_bbox_embed.layers.{i}.', name)
            name = re.sub(rf'bbox_head\.reg_branches\.(\d)\.{2 * i}\.',
                          rf'bbox_embed.\1.layers.{i}.', name)
        for ours, theirs in {'query_embedding': 'transformer.tgt_embed',
                             'memory_trans_fc': 'transformer.enc_output',
                             'memory_trans_norm': 'transformer.enc_output_norm',
                             'level_embed': 'transformer.level_embed',
                             'dn_query_generator.label_embedding': 'label_enc'}.items():
            name = re.sub(rf'^{re.escape(ours)}\b', theirs, name)
    else:
        name = name.replace('encoder.layers.0.self_attn.attn.', 'encoder.layers.0.self_attn.')
        name = re.sub(r'self_attn\.(\w+_proj)\b(?=\.(weight|bias))',
                      lambda m: m[0] if 'out_proj' in m[1] else f'sa_{m[1]}', name)
        name = re.sub(r'cross_attn\.(\w+_proj)\b(?=\.(weight|bias))',
                      lambda m: m[0] if 'out_proj' in m[1] else f'ca_{m[1]}', name)
        for ours, theirs in {'neck.convs.0.conv': 'input_proj', 'bbox_head.fc_cls': 'class_embed',
                             'bbox_head.fc_reg': 'bbox_embed',
                             'query_embedding': 'refpoint_embed',
                             'dn_query_generator.label_embedding': 'label_enc',
                             'decoder.post_norm': 'decoder.norm',
                             'patterns': 'transformer.patterns'}.items():
            name = re.sub(rf'^{re.escape(ours)}\b', theirs, name)
    for i in range(3):
        name = name.replace(f'.norms.{i}.', f'.norm{i + 1}.')
    name = name.replace('.ffn.layers.0.0.', '.linear1.').replace('.ffn.layers.1.', '.linear2.')
    name = name.replace('.ffn.layers.0.1.', '.activation.')
    return re.sub(r'^(encoder|decoder)\.', r'transformer.\1.', name)


def detrex_name(name: str, family: str) -> str:
    name = re.sub(r'^backbone\.(conv1|bn1)', r'backbone.stem.\1', name)
    for stage in range(1, 5):
        name = name.replace(f'backbone.layer{stage}.', f'backbone.res{stage + 1}.')
    if name.startswith('backbone.'):
        name = re.sub(r'\bbn(\d)', r'conv\1.norm', name)
        name = name.replace('downsample.0', 'shortcut').replace('downsample.1', 'shortcut.norm')
    name = name.replace('.self_attn.', '.attentions.0.').replace('.cross_attn.', '.attentions.1.')
    name = name.replace('.ffn.', '.ffns.0.')
    heads = {'query_embedding': 'anchor_box_embed', 'neck.convs.0.conv': 'input_proj',
             'bbox_head.fc_cls': 'class_embed', 'bbox_head.fc_reg': 'bbox_embed',
             'decoder.post_norm': 'decoder.post_norm_layer', 'patterns': 'transformer.patterns',
             'dn_query_generator.label_embedding': 'denoising_generator.label_encoder'}
    if family == 'dino':
        heads = {'query_embedding': 'transformer.tgt_embed', 'level_embed':
                 'transformer.level_embeds', 'memory_trans_fc': 'transformer.enc_output',
                 'memory_trans_norm': 'transformer.enc_output_norm',
                 'dn_query_generator.label_embedding': 'label_enc',
                 'bbox_head.cls_branches': 'class_embed'}
        name = re.sub(r'^(neck\..*)\.gn\.', r'\1.norm.', name)
        for i in range(3):
            name = re.sub(rf'bbox_head\.reg_branches\.(\d)\.{2 * i}\.',
                          rf'bbox_embed.\1.layers.{i}.', name)
    else:
        for ours, theirs in CONDITIONAL_ATTENTION:
            name = re.sub(rf'(attentions\.\d)\.{ours}_proj', rf'\1.{theirs}_proj', name)
    for ours, theirs in heads.items():
        name = re.sub(rf'^{re.escape(ours)}\b', theirs, name)
    return re.sub(r'^(encoder|decoder)\.', r'transformer.\1.', name)


def foreign(source: str, family: str, stock: dict) -> dict:
    """A stock detector's weights as another codebase saves them, with what it holds twice."""
    rename = dict(official=official_name, detrex=detrex_name)[source]
    tensors = {rename(name, family): x for name, x in stock.items()
               if not name.endswith('num_batches_tracked')}
    assert len(tensors) == len([x for x in stock if not x.endswith('num_batches_tracked')])
    for name in [x for x in tensors if re.match(r'(class|bbox)_embed\.', x)]:
        if name.startswith('bbox_embed.') or family == 'dino':
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


@pytest.mark.parametrize('family', ['dab', 'dab_patterns', 'dn', 'dino'])
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


def test_a_label_embedding_with_one_row_more_loses_it():
    tensors = foreign('official', 'dino', weights(config_of('dino', None)))
    label = tensors['label_enc.weight']
    tensors['label_enc.weight'] = torch.cat([label, label[:1]])
    state_dict = convert(dict(model=tensors), config_of('dino', 1)).state_dict
    assert torch.equal(state_dict['dn_query_generator.label_embedding.weight'], label)


EACH = ('conditional', 'dab', 'dn', 'deformable', 'two_stage', 'dab_deformable', 'dino',
        'mask2former')


@pytest.mark.parametrize('ours, theirs', list(zip(EACH, EACH[1:] + EACH[:1])))
def test_a_config_of_another_family_is_refused_by_both_names(ours, theirs):
    stock = build_without_memory(config_of(theirs, None)).state_dict()
    said = f'SRC holds a {NAMES[theirs]} and CONFIG builds a {NAMES[ours]}: name a config such as'
    with pytest.raises(ConfigError, match=f'{said} {CONFIGS[NAMES[theirs]]}, or'):
        convert(dict(state_dict=stock), config_of(ours))


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_the_config_that_is_named_fits(name):
    model = read_config(CONFIGS[name]).model
    assert recognize(build_without_memory(model).state_dict()) == ('mmdet', name)


def test_a_file_of_the_authors_dab_deformable_detr_is_named_as_such():
    tensors = {'refpoint_embed.weight': torch.ones(6, 4), 'tgt_embed.weight': torch.ones(6, 32)}
    with pytest.raises(ConfigError, match='SRC holds a DABDeformableDETR and CONFIG builds a DABD'
                       'ETR: name a config such as group_dab_deformable_detr_r50_12e'):
        convert(dict(model=tensors), config_of('dab'))
    for source, family in (('official', 'deformable'), ('detrex', 'mask2former')):
        with pytest.raises(ConfigError, match=f'--from {source}: the names that it gives a'):
            convert(dict(model=dict(a=torch.ones(1))), config_of(family), source)
    with pytest.raises(ConfigError, match='official: the names that it gives a DABDeformableDETR'):
        convert(dict(model=tensors), config_of('dab_deformable'))


@pytest.mark.parametrize('family', ['dab', 'dino', 'mask2former'])
def test_other_classes_get_one_sentence(family):
    if family == 'mask2former':
        source = mask2former_config(None, num_things=7)
    else:
        source = config_of(family, None)
        source['bbox_head']['num_classes'] = 7
    with pytest.raises(ConfigError, match='SRC has 7 classes and CONFIG 5.*load_fro') as error:
        convert(dict(state_dict=weights(source)), config_of(family))
    assert '\n' not in str(error.value)


def test_layers_that_the_detector_shares_must_be_equal():
    """Else a detector with box refinement would become another without it, silently."""
    refined = weights(config_of('refine', None))
    with pytest.raises(ConfigError, match='different numbers in bbox_head.cls_branches.0.weight '
                       'and bbox_head.cls_branches.1.weight.*with_box_refine=True'):
        convert(dict(state_dict=refined), config_of('deformable'))


@pytest.mark.parametrize('family', ['dab', 'dino', 'mask2former'])
def test_half_precision_gives_groups_that_differ(family):
    stock = {name: x.half() if x.is_floating_point() else x
             for name, x in weights(config_of(family, None)).items()}
    converted = convert(dict(state_dict=stock), config_of(family)).state_dict
    model = load(config_of(family), converted)
    blocks = next(x for _, x in model.group_parameters()).chunk(K)
    assert not torch.equal(blocks[0], blocks[1]) and not torch.equal(blocks[1], blocks[2])
    assert all(x.dtype == stock[name].dtype for name, x in converted.items())


def test_groups_that_take_turns_do_not_matter():
    config = config_of('conditional')
    config['train_cfg']['groups_at_once'] = 2
    assert convert(dict(state_dict=weights(config)), config, to='mmdet').state_dict


def test_tensors_held_twice_must_be_equal():
    tensors = foreign('official', 'dab', weights(config_of('dab', None)))
    tensors['transformer.decoder.bbox_embed.layers.0.bias'] = torch.zeros(32)
    with pytest.raises(ConfigError, match='both become bbox_head.fc_reg.layers.0.bias'):
        convert(dict(model=tensors), config_of('dab'))


@pytest.mark.parametrize('family', OURS_ALONE)
def test_what_mmdet_does_not_have_stays_here(family):
    config = config_of(family)
    with pytest.raises(ConfigError, match='--to mmdet: Group.*that no class of mmdet does'):
        convert(dict(state_dict=weights(config)), config, to='mmdet')


@pytest.mark.parametrize('family', OF_MMDET)
def test_the_config_is_not_changed(family):
    config = config_of(family)
    before = copy.deepcopy(config)
    convert(dict(state_dict=weights(config)), config, to='mmdet')
    assert config == before
