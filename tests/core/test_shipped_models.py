"""Every shipped model trains in several processes: a step reaches all that can be trained.

``DistributedDataParallel`` waits for the gradient of every parameter. Test_distributed.py has the
processes themselves, for one model of each family.
"""
import pytest
import torch
from builders import build, make_batch
from mmengine.registry import init_default_scope

from groupdetr_mmdet.config import read_config, shipped_configs


def shrunk_model(name: str) -> dict:
    """Model of a shipped config: a narrow backbone, few queries and layers, no download."""
    init_default_scope('mmdet')
    model = read_config(name).model.to_dict()
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


# Mask2Former wants masks and has tests of its own.
@pytest.mark.parametrize('name', [name for name in shipped_configs()
                                  if not has_twin(name) and 'mask2former' not in name])
def test_a_step_reaches_every_parameter(name):
    assert untrained(build(shrunk_model(name))) == []
