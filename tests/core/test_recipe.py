"""Configs build without network and follow the official recipe; so does the initialization."""
from pathlib import Path

import pytest
import torch
from builders import build, detector_config, make_batch
from mmdet.models.backbones import MobileNetV2
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from groupdetr_mmdet.backbones import EndingMobileNetV2
from groupdetr_mmdet.config import shipped_configs

CONFIGS = Path(__file__).parents[2] / 'configs'


def load(name):
    init_default_scope('mmdet')
    return Config.fromfile(CONFIGS / name)


@pytest.mark.parametrize('name', [x for x in shipped_configs() if 'mask2former' in x])
def test_config_builds(name):
    """``test_a_step_reaches_every_parameter`` builds the other configs."""
    with torch.device('meta'):
        assert MODELS.build(load(f'{name}.py').model).num_query_groups


def test_recipe_is_the_official_one():
    """Its optimizer takes the official steps in tests/parity."""
    config = load('group_cond_detr_r50_12e.py')
    assert config.model.num_queries == 300 and config.model.num_query_groups == 11
    assert config.train_dataloader.batch_size == 2 and config.auto_scale_lr.base_batch_size == 16
    assert config.param_scheduler[0].milestones == [11]
    assert load('group_cond_detr_r50_50e.py').param_scheduler[0].milestones == [40]


def test_dropout_stands_where_the_official_code_has_it():
    model = MODELS.build(load('group_cond_detr_r50_12e.py').model)
    layer = model.decoder.layers[0]
    for attention in (layer.self_attn, layer.cross_attn):
        assert attention.attn_drop.p == attention.proj_drop.p == 0.1
    encoder_attention = model.encoder.layers[0].self_attn
    assert encoder_attention.attn.dropout == encoder_attention.dropout_layer.p == 0.1
    for ffn in (layer.ffn, model.encoder.layers[0].ffn):
        assert [m.p for m in ffn.modules() if isinstance(m, torch.nn.Dropout)] == [0.1, 0.1]


def test_initialization_is_the_official_one():
    model = build(detector_config(num_queries=100, num_query_groups=3))
    head = model.bbox_head
    assert head.fc_reg.weight.abs().sum() == head.fc_reg.bias.abs().sum() == 0
    torch.testing.assert_close(head.fc_cls.bias.sigmoid(), torch.full((5, ), 0.01))
    assert model.query_embedding.weight.std().item() == pytest.approx(1, abs=0.05)
    for name, p in (*model.encoder.named_parameters(), *model.decoder.named_parameters()):
        if p.dim() > 1:
            xavier = (2 / sum(p.shape))**0.5
            assert p.std().item() == pytest.approx(xavier, rel=0.15), name


def test_the_neck_starts_as_pytorch_makes_a_convolution():
    model = MODELS.build(load('group_cond_detr_r50_12e.py').model)
    model.neck.init_weights()
    conv = model.neck.convs[0].conv
    bound = conv.in_channels**-0.5
    for parameter in (conv.weight, conv.bias):
        assert parameter.abs().max().item() == pytest.approx(bound, rel=0.1)
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.15)


def test_dc5_is_dilated_as_in_torchvision():
    model = MODELS.build(load('group_cond_detr_r50_dc5_12e.py').model)
    stage = model.backbone.layer4
    assert [block.conv2.dilation for block in stage] == [(1, 1), (2, 2), (2, 2)]
    assert all(block.conv2.stride == (1, 1) for block in stage)
    with torch.no_grad():
        feature, = model.backbone(torch.zeros(1, 3, 64, 96))
    assert feature.shape == (1, 2048, 4, 6)


def shrunk_model(name: str) -> dict:
    """Model of a shipped config: a narrow backbone, few queries and layers, no download."""
    model = load(f'{name}.py').model.to_dict()
    backbone = dict(model['backbone'], init_cfg=None)
    factor = 1
    if 'ResNet' in backbone['type'] and 'base_channels' not in backbone:
        backbone['base_channels'], factor = 4, 16
    elif backbone['type'] == 'SwinTransformer':
        backbone.update(embed_dims=48, depths=(2, 2, 2, 2), with_cp=False)
        factor = 4
    neck = dict(model['neck'], in_channels=[x // factor for x in model['neck']['in_channels']])
    model.update(backbone=backbone, neck=neck, num_queries=12, data_preprocessor=None)
    if 'num_query_groups' in model:
        model['num_query_groups'] = 2  # a baseline and its groups differ in this alone
    for coder in ('encoder', 'decoder'):
        model[coder] = dict(model[coder], num_layers=min(model[coder]['num_layers'], 2))
    model['test_cfg'] = dict(model.get('test_cfg') or {}, max_per_img=12)
    return model


def has_twin(name: str) -> bool:
    """Whether a model differs from another's in the number of groups or the epochs alone."""
    folder, _, stem = name.rpartition('/')
    twins = f'{folder}/group_{stem}'.lstrip('/'), name.replace('_50e', '_12e')
    return any(twin != name and twin in shipped_configs() for twin in twins)


def untrained(model: torch.nn.Module) -> list:
    """Names of the parameters that can be trained and that a step does not reach."""
    losses = model.loss(*make_batch(num_classes=3))
    sum(sum(x) if isinstance(x, list) else x for x in losses.values()).backward()
    return [name for name, x in model.named_parameters() if x.requires_grad and x.grad is None]


@pytest.mark.parametrize('name', [name for name in shipped_configs()
                                  if not has_twin(name) and 'mask2former' not in name])
def test_a_step_reaches_every_parameter(name):
    """For which ``DistributedDataParallel`` waits; Mask2Former's are in test_families.py."""
    assert untrained(build(shrunk_model(name))) == []


@pytest.mark.parametrize('out_indices', [(4, ), (2, 4), (7, )])
def test_mobilenet_ends_with_its_last_output(out_indices):
    torch.manual_seed(0)
    whole, ending = (backbone(out_indices=out_indices, norm_eval=False)
                     for backbone in (MobileNetV2, EndingMobileNetV2))
    ending.load_state_dict(whole.state_dict())
    for backbone in (whole, ending):
        backbone.eval()
    image = torch.rand(1, 3, 64, 64)
    for mine, theirs in zip(ending(image), whole(image)):
        assert torch.equal(mine, theirs)
    ending.train()
    sum(x.sum() for x in ending(image)).backward()
    assert all(x.grad is not None for x in ending.parameters())
    unused = sum(x.numel() for x in whole.parameters()) - sum(
        x.numel() for x in ending.parameters())
    assert (unused > 0) == (out_indices != (7, ))
