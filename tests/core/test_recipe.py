"""Configs build without network and follow the official recipe; so does the initialization."""
from pathlib import Path

import pytest
import torch
from builders import build, detector_config
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from groupdetr_mmdet.config import shipped_configs

CONFIGS = Path(__file__).parents[2] / 'configs'


def load(name):
    init_default_scope('mmdet')
    return Config.fromfile(CONFIGS / name)


@pytest.mark.parametrize('name', [x for x in shipped_configs() if 'mask2former' in x])
def test_config_builds(name):
    """Test_shipped_models.py builds the others."""
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
