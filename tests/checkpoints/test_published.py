"""Weights load by name; weights of other classes load without classification layers."""
from pathlib import Path

import pytest
import torch
from builders import build
from family_builders import family_config
from mask_builders import mask2former_config
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_state_dict

from groupdetr_mmdet.checkpoints import named
from groupdetr_mmdet.checkpoints.loading import CLASS_LAYERS, keep_class_layers
from groupdetr_mmdet.checkpoints.named import resolve_weights
from groupdetr_mmdet.checkpoints.reading import read_checkpoint
from groupdetr_mmdet.errors import ConfigError
from groupdetr_mmdet.config import read_config
from groupdetr_mmdet.training.recipe import MODELS as RECIPES

NAME = 'groupdetr://group_cond_detr_r50_12e'


def test_published_weights_are_fetched_once_and_fit_their_config(server, tmp_path, monkeypatch):
    init_default_scope('mmdet')
    model = MODELS.build(read_config(NAME.partition('://')[2]).model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    monkeypatch.setitem(named.PUBLISHED, NAME.partition('://')[2], f'{server}/weights.pth')
    loaded = read_checkpoint(NAME)['state_dict']
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(x, loaded[name]) for name, x in model.state_dict().items())
    (tmp_path / 'weights.pth').unlink()
    assert read_checkpoint(NAME)['state_dict'].keys() == loaded.keys()


def test_an_unknown_name_lists_the_known_names():
    with pytest.raises(ConfigError, match=f'no weights .* {NAME}'):
        read_checkpoint('groupdetr://else')


def test_every_model_has_the_weights_of_its_own_config():
    """By the address of mmdet's own metafile; it names the config that they were trained with."""
    for name, recipe in RECIPES.items():
        address = resolve_weights('coco', recipe.weights)
        if name in ('cond', 'small'):
            assert address == (NAME if name == 'cond' else None)
        else:
            config = Path(recipe.weights).name
            assert address.startswith('https://') and Path(address).name.startswith(config)
    assert resolve_weights('none', NAME) is None


@pytest.mark.parametrize('groups', [None, 5])
@pytest.mark.parametrize('family', ['conditional', 'dab', 'dn', 'refine', 'two_stage',
                                    'dab_deformable', 'dino', 'mask2former'])
def test_weights_of_other_classes_lend_all_but_their_class_layers(family, groups):
    """Of a stock detector, and of one with more groups."""
    init_default_scope('mmdet')
    if family == 'mask2former':
        config, saved_config = mask2former_config(3), mask2former_config(groups, num_things=8)
    else:
        config = family_config(family, num_query_groups=3, width=256)
        saved_config = family_config(family, num_query_groups=groups, width=256)
        saved_config['bbox_head']['num_classes'] = 8
    saved = build(saved_config).state_dict()
    model = build(config)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    names = keep_class_layers(model, saved)
    assert names and all(CLASS_LAYERS.search(name) for name in names)
    load_state_dict(model, saved, strict=True)
    of_groups = dict(model.group_parameters())
    for name, x in model.state_dict().items():
        expected = before[name] if name in names else saved[name]
        rows = len(x) // 3 if name in of_groups else None  # group 0 is never changed
        assert torch.equal(x[:rows], expected[:rows]) if x.dim() else torch.equal(x, expected)
    a, b, c = next(iter(of_groups.values())).chunk(3)
    assert not (torch.equal(a, b) or torch.equal(a, c) or torch.equal(b, c)), 'no groups tie'
