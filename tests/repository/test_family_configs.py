"""The families' configs are mmdet's, and the assigner alone works in stock configs."""
from pathlib import Path

import pytest
import torch
from builders import build, detector_config, make_batch
from family_builders import family_config
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from torch import nn

ROOT = Path(__file__).parents[2]
MMDET = dict(
    dab_detr_r50_12e='dab_detr/dab-detr_r50_8xb2-50e_coco',
    deformable_detr_r50_12e='deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    group_deformable_detr_refine_two_stage_r50_12e=(
        'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco'),
    dino_4scale_r50_12e='dino/dino-4scale_r50_8xb2-12e_coco')


@pytest.fixture(autouse=True)
def mmdet_scope() -> None:
    init_default_scope('mmdet')


def describe(config: Config) -> dict:
    """What must be equal in ours with one group and mmdet's."""
    model = MODELS.build(config.model)
    encoding = model.positional_encoding
    return dict(
        shapes={name: x.shape for name, x in model.state_dict().items()},
        dropout=[m.p for m in (*model.encoder.modules(), *model.decoder.modules())
                 if isinstance(m, nn.Dropout)],
        activations=[type(m) for m in model.modules() if isinstance(m, (nn.ReLU, nn.PReLU))],
        encoding=[encoding.num_feats, encoding.temperature, encoding.normalize, encoding.offset],
        max_per_img=model.test_cfg['max_per_img'],
        loss_weights=[getattr(model.bbox_head, f'loss_{x}').loss_weight
                      for x in ('cls', 'bbox', 'iou')],
        costs=[cost.weight for cost in model.bbox_head.assigner.match_costs])


@pytest.mark.parametrize('ours', MMDET)
def test_one_group_is_the_model_of_mmdets_config(ours):
    config = Config.fromfile(ROOT / f'configs/{ours}.py')
    config.model.num_query_groups = 1
    stock = get_config(f'mmdet::{MMDET[ours]}.py')
    assert describe(config) == describe(stock)


def test_a_group_config_and_its_baseline_differ_in_the_number_of_groups_alone():
    files = (ROOT / 'configs').rglob('group_*.py')
    pairs = [(file, file.with_name(file.name[len('group_'):])) for file in files]
    pairs = [pair for pair in pairs if pair[1].exists()]
    assert len(pairs) >= 8
    for pair in pairs:
        config, stock = map(Config.fromfile, pair)
        assert config.model.pop('num_query_groups') > stock.model.pop('num_query_groups') == 1
        assert config.to_dict() == stock.to_dict()


def stock_with_group_assigner(family: str) -> dict:
    if family == 'detr':
        config = detector_config(6, num_query_groups=None)
        attention = dict(embed_dims=32, num_heads=4)
        config['type'], config['bbox_head']['type'] = 'DETR', 'DETRHead'
        config['decoder']['layer_cfg'].update(self_attn_cfg=attention, cross_attn_cfg=attention)
    else:
        config = family_config(family, num_query_groups=None, width=256)
        if family == 'dino':
            config['bbox_head']['type'] = 'GroupDINOHead'
    config['train_cfg']['assigner'].update(type='GroupHungarianAssigner', num_query_groups=3)
    return config


@pytest.mark.parametrize('family', ['detr', 'conditional', 'dab', 'deformable', 'dino'])
def test_the_assigner_alone_matches_every_object_once_in_each_group(family):
    model = build(stock_with_group_assigner(family))
    losses = model.loss(*make_batch(num_gts=(2, 1)))
    sum(losses.values()).sum().backward()
    assert all(torch.isfinite(x).all() for x in losses.values())
    inputs, samples = make_batch(num_gts=(2, 1))
    outputs = model.forward_transformer(model.extract_feat(inputs), samples)
    names = ('hidden_states', 'references')
    logits, boxes = model.bbox_head(*[outputs[x] for x in names if x in outputs])
    if family == 'dino':
        logits, boxes, *_ = model.bbox_head.split_outputs(logits, boxes, outputs['dn_meta'])
    pairs = model.bbox_head.assigner.match_layers(
        logits, boxes, [x.gt_instances for x in samples], [x.metainfo for x in samples], 5)
    for layer in range(2):
        groups = pairs.rows[layer] % 6 // 2
        assert sorted(zip(pairs.gts[layer].tolist(), groups.tolist())) == [
            (gt, group) for gt in range(3) for group in range(3)]
